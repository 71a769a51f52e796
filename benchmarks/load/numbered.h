/* Numbered events: streams that check their sequence, are cut off, and come back to where they were.
 *
 * Stamps are "@GTTTTTTTTTTTTTTTTNNNNNNNNNN@": ten more digits are the event's number N, and it is on topic N mod TOPICS.
 * Stream S has the topics from S * EACH mod TOPICS on, EACH of them, so it knows which number must come next: one above
 * is lost, one below is doubled or out of order. As with every client, an event counts when its block is complete, and
 * so does its id.
 *
 * A stream that was cut is *live again* once it has all that any stream had when it saw its own `rowcast.ready`.
 */

enum { LINE = 1024, ID = 80 };

struct sequence {
    int64_t next;   /* the number that must come next */
    int64_t number; /* of the block that is being read; -1: none */
    int64_t due, target, cut, come_back;
    int retry; /* milliseconds */
    uint8_t bye, ready;
    uint16_t length;
    char line[LINE], id[ID], new_id[ID];
};

static struct sequence *sequences;
static int topics, each, stay, away;
static int64_t newest = -1;

static struct storm {
    uint64_t lost, doubled, resets, byes, broken, attempts;
    int64_t cut_at, last_ready, last_live; /* the latter two in microseconds after the cut */
    int back, live;
    uint64_t ready_after[BUCKETS], live_after[BUCKETS];
} storm;

static int64_t of_stream(int index, int64_t from) {
    /* The first number at or above `from` that is on one of the stream's topics. */
    int64_t first = (int64_t)index * each % topics, into = from % topics - first;
    if (into < 0) return from - into;
    return into < each ? from : from - into + topics;
}

static int64_t newest_of(int index) {
    int64_t first = (int64_t)index * each % topics, last = first + each - 1, into = newest % topics;
    if (newest < 0) return -1;
    return into >= last ? newest - into + last : into >= first ? newest : newest - into + last - topics;
}

static void live_again(struct sequence *q, int64_t now) {
    storm.live++;
    storm.last_live = now - storm.cut_at;
    storm.live_after[bucket_of(now - q->cut)]++;
    q->cut = 0;
}

static void numbered_ready(struct sequence *q, int index, int64_t now) {
    q->ready = 1;
    if (!q->cut) return;
    storm.back++;
    storm.ready_after[bucket_of(now - q->cut)]++;
    storm.last_ready = now - storm.cut_at;
    q->target = newest_of(index);
    if (q->next > q->target) live_again(q, now);
}

static void numbered_event(struct sequence *q, int index, int64_t now) {
    int64_t number = q->number;
    q->number = -1;
    if (number > q->next) storm.lost++;
    if (number < q->next) storm.doubled++;
    else q->next = of_stream(index, number + 1);
    if (number > newest) newest = number;
    count_event(index < stay ? 0 : 1, q->due, now);
    if (q->cut && q->ready && number >= q->target) live_again(q, now);
}

static void numbered_line(struct sequence *q, int index, int64_t now) {
    const char *line = q->line, *stamp;
    if (q->length && line[q->length - 1] == '\r') q->length--;
    q->line[q->length] = 0;
    if (!q->length) {
        if (*q->new_id) strcpy(q->id, q->new_id);
        *q->new_id = 0;
        if (q->number >= 0) numbered_event(q, index, now);
    } else if (!strncmp(line, "id: ", 4)) snprintf(q->new_id, ID, "%s", line + 4);
    else if (!strncmp(line, "retry: ", 7)) q->retry = atoi(line + 7);
    else if (!strcmp(line, "event: rowcast.ready")) numbered_ready(q, index, now);
    else if (!strcmp(line, "event: rowcast.reset")) storm.resets++;
    else if (!strcmp(line, "event: rowcast.bye")) q->bye = 1;
    else if (!strncmp(line, "data: ", 6) && (stamp = strchr(line, '@')) && line + q->length - stamp >= 29 && stamp[28] == '@') {
        q->due = q->number = 0;
        for (int i = 2; i < 18; i++) q->due = q->due * 10 + (stamp[i] - '0');
        for (int i = 18; i < 28; i++) q->number = q->number * 10 + (stamp[i] - '0');
    }
}

static void numbered_data(int index, const char *data, size_t length, int64_t now) {
    struct sequence *q = &sequences[index];
    const char *end = data + length;
    while (data < end) {
        const char *stop = memchr(data, '\n', (size_t)(end - data));
        size_t part = (size_t)((stop ? stop : end) - data), room = (size_t)(LINE - 1 - q->length);
        memcpy(q->line + q->length, data, part < room ? part : room);
        q->length += (uint16_t)(part < room ? part : room);
        if (!stop) return;
        numbered_line(q, index, now);
        q->length = 0;
        data = stop + 1;
    }
}

/* The stream's connection has ended: it comes back when it was told to. */
static void numbered_gone(int index, int64_t now) {
    struct sequence *q = &sequences[index];
    if (q->bye) storm.byes++;
    else storm.broken++;
    if (!q->cut) q->cut = now;
    q->come_back = now + (int64_t)q->retry * 1000;
    away++;
}

static void numbered_begin(int index) {
    struct sequence *q = &sequences[index];
    q->length = q->bye = q->ready = 0;
    q->number = -1;
    *q->new_id = 0;
    q->come_back = 0;
}

static void numbered_init(int count) {
    sequences = calloc((size_t)count, sizeof *sequences);
    for (int i = 0; i < count; i++) {
        sequences[i].next = of_stream(i, 0);
        sequences[i].number = -1;
        sequences[i].retry = 1000;
    }
}

static void numbered_report(int count) {
    int64_t behind = 0;
    for (int i = 0; i < count; i++) behind += sequences[i].next <= newest_of(i);
    printf("\"storm\":{\"lost\":%llu,\"doubled\":%llu,\"resets\":%llu,\"byes\":%llu,\"broken\":%llu,\"attempts\":%llu,"
           "\"back\":%d,\"live\":%d,\"away\":%d,\"behind\":%lld,\"newest\":%lld,\"last_ready\":%lld,\"last_live\":%lld,\"ready\":",
           (unsigned long long)storm.lost, (unsigned long long)storm.doubled, (unsigned long long)storm.resets,
           (unsigned long long)storm.byes, (unsigned long long)storm.broken, (unsigned long long)storm.attempts,
           storm.back, storm.live, away, (long long)behind, (long long)newest, (long long)storm.last_ready,
           (long long)storm.last_live);
    print_quantiles(storm.ready_after, (uint64_t)storm.back, 0);
    printf(",\"live_after\":");
    print_quantiles(storm.live_after, (uint64_t)storm.live, 0);
    printf("},");
}

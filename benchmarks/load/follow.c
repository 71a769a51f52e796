/* Many EventSources that come back: they follow the protocol as a browser does, and check what they get.
 *
 *   follow --target HOST:PORT [--target …] --requests FILE --streams N [--in-flight 256]
 *
 * FILE as for `load`. Each stream reconnects when its response ends, after the last `retry:`, with the last id that
 * a whole block has brought (WHATWG HTML, section 9.2). A status other than 200 closes it for good, as it does a
 * browser's: it is counted in `closed`, and never comes back.
 *
 * Events hold a stamp, "@TTTTTTTTTTTTTTTTNNNNNNNN@": sixteen digits of the microseconds of CLOCK_MONOTONIC at which
 * the event was due, and eight of its number. The numbers that a stream gets must be 1, 2, 3, …: what is left out is
 * counted in `lost`, what comes again or too late in `doubled`.
 *
 * It prints one line of JSON when every stream has seen `rowcast.ready`, then obeys lines on its standard input:
 *   zero    forget latencies, gaps and reconnects (not what was lost or doubled)
 *   report  print one line of JSON
 *   quit    (or the end of the input)
 */
#include "common.h"

#include <fcntl.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

enum { LINE = 2048, ID = 64, STAMP = 26, BUFFER = 256 * 1024, TENTHS = 36000, TICK = 5 };
enum { WAITING, CONNECTING, HEAD, CHUNK_SIZE, CHUNK, CHUNK_END, BODY, CLOSED };

struct stream {
    int fd, state, chunked, status, index;
    int bye, was_ready, held;
    long chunk;
    uint32_t number;       /* of the last event */
    int64_t due;           /* when to connect */
    int64_t left;          /* when the last response ended */
    int64_t last, longest; /* event, and the longest time between two */
    int64_t retry;         /* microseconds */
    char id[ID], new_id[ID];
    char line[LINE];
};

static struct {
    uint64_t events, bytes, lost, doubled, bad, resets, byes, breaks, bounced, closed, refused, reconnects;
    uint64_t latencies[BUCKETS], away[BUCKETS];
    uint64_t returned[TENTHS]; /* streams that were ready again, by tenth of a second */
    int64_t latest, largest, longest_away, zero;
} counts;

static struct stream *streams;
static int wanted, in_flight = 256, connecting, ready, announced, poller;
static char buffer[BUFFER];

/* An event with the stamp that begins at `data`. */
static void arrived(struct stream *s, const char *data) {
    int64_t due = 0, number = 0, now = counts.latest;
    for (int i = 1; i < STAMP - 1; i++) {
        unsigned digit = (unsigned)(data[i] - '0');
        if (digit > 9) {
            counts.bad++;
            return;
        }
        if (i <= 16) due = due * 10 + digit;
        else number = number * 10 + digit;
    }
    counts.events++;
    if (number == s->number + 1) s->number++;
    else if (number <= s->number) counts.doubled++;
    else {
        counts.lost += (uint64_t)(number - s->number - 1);
        s->number = (uint32_t)number;
    }
    if (s->last && now - s->last > s->longest) s->longest = now - s->last;
    s->last = now;
    counts.latencies[bucket_of(now - due)]++;
    if (now - due > counts.largest) counts.largest = now - due;
}

static void finish(struct stream *s) {
    close(s->fd);
    if (s->state == CONNECTING || s->state == HEAD) connecting--;
    if (s->status && s->status != 200) {
        if (!counts.closed) fprintf(stderr, "follow: closed by status %d\n", s->status);
        counts.closed++;
        s->state = CLOSED;
        return;
    }
    if (s->was_ready) {
        s->left = counts.latest;
        if (!s->bye) counts.breaks++;
    } else if (s->bye) counts.bounced++;
    else counts.refused++;
    s->state = WAITING;
    s->due = counts.latest + s->retry;
}

/* One line of the stream, without its end. */
static void field(struct stream *s, const char *line, int length) {
    if (!length) {
        if (*s->new_id) memcpy(s->id, s->new_id, ID);
    } else if (length > 4 && !memcmp(line, "id: ", 4)) {
        int size = length - 4 < ID - 1 ? length - 4 : ID - 1;
        memcpy(s->new_id, line + 4, (size_t)size);
        s->new_id[size] = 0;
    } else if (length > 7 && !memcmp(line, "retry: ", 7)) {
        s->retry = atol(line + 7) * 1000;
    } else if (length == 20 && !memcmp(line, "event: rowcast.ready", 20)) {
        if (!s->was_ready) {
            s->was_ready = 1;
            if (s->left) {
                int64_t away = counts.latest - s->left, tenth = (counts.latest - counts.zero) / 100000;
                counts.reconnects++;
                counts.away[bucket_of(away)]++;
                if (away > counts.longest_away) counts.longest_away = away;
                if (tenth >= 0 && tenth < TENTHS) counts.returned[tenth]++;
            } else ready++;
        }
    } else if (length == 20 && !memcmp(line, "event: rowcast.reset", 20)) {
        counts.resets++;
    } else if (length == 18 && !memcmp(line, "event: rowcast.bye", 18)) {
        counts.byes++;
        s->bye = 1;
    } else if (!memcmp(line, "data: ", length < 6 ? (size_t)length : 6)) {
        const char *stamp = memchr(line, '@', (size_t)length);
        if (stamp && line + length - stamp >= STAMP && stamp[STAMP - 1] == '@') arrived(s, stamp);
        else if (stamp) counts.bad++;
    }
}

/* One line of the response's head. */
static void head(struct stream *s, const char *line, int length) {
    if (!s->status) {
        s->status = length > 12 ? atoi(line + 9) : 1;
    } else if (!length) {
        connecting--;
        s->state = s->chunked ? CHUNK_SIZE : BODY;
    } else if (length >= 26 && !strncasecmp(line, "transfer-encoding: chunked", 26)) s->chunked = 1;
}

/* Takes bytes up to the end of a line, which is handed on once it is whole. Returns how many were taken. */
static long lines(struct stream *s, const char *data, long length) {
    const char *end = memchr(data, '\n', (size_t)length);
    long part = end ? end - data : length;
    const char *line = data;
    int size = (int)part;
    if (s->held || !end) {
        if (s->held + part > LINE) {
            counts.bad++;
            s->held = 0;
            return end ? part + 1 : part;
        }
        memcpy(s->line + s->held, data, (size_t)part);
        s->held += (int)part;
        line = s->line;
        size = s->held;
    }
    if (!end) return part;
    s->held = 0;
    if (size && line[size - 1] == '\r') size--;
    if (s->state == HEAD) head(s, line, size);
    else field(s, line, size);
    return part + 1;
}

static void readable(struct stream *s) {
    long got = recv(s->fd, buffer, BUFFER, 0);
    counts.latest = now_us();
    if (got <= 0) {
        if (got < 0 && (errno == EAGAIN || errno == EINTR)) return;
        finish(s);
        return;
    }
    counts.bytes += (uint64_t)got;
    for (long at = 0; at < got;) {
        if (s->state == HEAD || s->state == BODY) {
            at += lines(s, buffer + at, got - at);
            if (s->state != HEAD && s->status != 200) {
                finish(s);
                return;
            }
        } else if (s->state == CHUNK) {
            long size = got - at < s->chunk ? got - at : s->chunk;
            s->chunk -= size;
            for (long end = at + size; at < end;) at += lines(s, buffer + at, end - at);
            if (!s->chunk) s->state = CHUNK_END;
        } else {
            int c = (unsigned char)buffer[at++];
            if (c != '\n') {
                if (s->state == CHUNK_SIZE && c != '\r') s->chunk = s->chunk * 16 + (c <= '9' ? c - '0' : (c | 32) - 'a' + 10);
            } else if (s->state == CHUNK_END) s->state = CHUNK_SIZE;
            else if (s->chunk) s->state = CHUNK;
            else { /* the last one: the response is whole */
                finish(s);
                return;
            }
        }
    }
}

static void start(struct stream *s) {
    struct epoll_event event = {.events = EPOLLOUT, .data.ptr = s};
    struct sockaddr_in *to = &targets[s->index % target_count];
    s->fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (s->fd < 0) die("socket");
    s->state = CONNECTING;
    s->status = s->chunked = s->held = s->bye = s->was_ready = 0;
    s->chunk = 0;
    *s->new_id = 0;
    connecting++;
    if (connect(s->fd, (struct sockaddr *)to, sizeof *to) && errno != EINPROGRESS) die("connect");
    if (epoll_ctl(poller, EPOLL_CTL_ADD, s->fd, &event)) die("epoll_ctl");
}

static void ask(struct stream *s) {
    static char text[16 * 1024];
    const char *line = requests[s->index % request_count];
    const char *space = strchr(line, ' ');
    int path = space ? (int)(space - line) : (int)strlen(line);
    const struct sockaddr_in *to = &targets[s->index % target_count]; /* Caddy looks at the host */
    int length = snprintf(text, sizeof text,
                          "GET %.*s HTTP/1.1\r\nHost: %s:%d\r\nAccept: text/event-stream\r\n%s%s%s%s%s%s\r\n", path, line,
                          inet_ntoa(to->sin_addr), ntohs(to->sin_port), space ? "Authorization: Bearer " : "", space ? space + 1 : "", space ? "\r\n" : "",
                          *s->id ? "Last-Event-ID: " : "", s->id, *s->id ? "\r\n" : "");
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = s};
    if (send(s->fd, text, (size_t)length, MSG_NOSIGNAL) != length) {
        finish(s);
        return;
    }
    s->state = HEAD;
    epoll_ctl(poller, EPOLL_CTL_MOD, s->fd, &event);
}

static void zero(void) {
    memset(counts.latencies, 0, sizeof counts.latencies);
    memset(counts.away, 0, sizeof counts.away);
    memset(counts.returned, 0, sizeof counts.returned);
    counts.largest = counts.longest_away = 0;
    counts.events = counts.reconnects = counts.byes = counts.bounced = 0;
    counts.zero = now_us();
    for (int i = 0; i < wanted; i++) streams[i].longest = 0;
}

static void report(void) {
    static uint64_t gaps[BUCKETS];
    int64_t longest = 0;
    uint32_t least = UINT32_MAX, most = 0;
    uint64_t in_second = 0, busiest = 0;
    int open = 0;
    memset(gaps, 0, sizeof gaps);
    for (int i = 0; i < wanted; i++) {
        struct stream *s = &streams[i];
        gaps[bucket_of(s->longest)]++;
        if (s->longest > longest) longest = s->longest;
        if (s->number < least) least = s->number;
        if (s->number > most) most = s->number;
        open += s->was_ready && s->state > HEAD && s->state != CLOSED;
    }
    for (int i = 0; i < TENTHS; i++) {
        in_second += counts.returned[i] - (i < 10 ? 0 : counts.returned[i - 10]);
        if (in_second > busiest) busiest = in_second;
    }
    printf("{\"open\":%d,\"least\":%u,\"most\":%u,\"events\":%llu,\"lost\":%llu,\"doubled\":%llu,\"bad\":%llu,\"resets\":%llu,"
           "\"byes\":%llu,\"breaks\":%llu,\"bounced\":%llu,\"refused\":%llu,\"closed\":%llu,\"reconnects\":%llu,"
           "\"busiest_second\":%llu,\"cpu\":%.3f,\"seconds\":%.3f,\"latency\":",
           open, least, most, (unsigned long long)counts.events, (unsigned long long)counts.lost,
           (unsigned long long)counts.doubled, (unsigned long long)counts.bad, (unsigned long long)counts.resets,
           (unsigned long long)counts.byes, (unsigned long long)counts.breaks, (unsigned long long)counts.bounced,
           (unsigned long long)counts.refused, (unsigned long long)counts.closed, (unsigned long long)counts.reconnects,
           (unsigned long long)busiest, cpu_seconds(), (double)(now_us() - counts.zero) / 1e6);
    print_quantiles(counts.latencies, counts.events, counts.largest);
    printf(",\"gap\":");
    print_quantiles(gaps, (uint64_t)wanted, longest);
    printf(",\"away\":");
    print_quantiles(counts.away, counts.reconnects, counts.longest_away);
    printf("}\n");
    fflush(stdout);
}

static int command(void) {
    static char line[256];
    static size_t length;
    ssize_t got = read(0, line + length, sizeof line - 1 - length);
    if (got <= 0) return got < 0 && errno == EAGAIN;
    length += (size_t)got;
    line[length] = 0;
    for (char *end; (end = strchr(line, '\n'));) {
        *end = 0;
        if (!strcmp(line, "zero")) zero();
        else if (!strcmp(line, "report")) report();
        else if (!strcmp(line, "quit")) return 0;
        length -= (size_t)(end + 1 - line);
        memmove(line, end + 1, length + 1);
    }
    return 1;
}

int main(int argc, char **argv) {
    const char *file = NULL;
    for (int i = 1; i + 1 < argc; i += 2) {
        if (!strcmp(argv[i], "--target")) add_target(argv[i + 1]);
        else if (!strcmp(argv[i], "--requests")) file = argv[i + 1];
        else if (!strcmp(argv[i], "--streams")) wanted = atoi(argv[i + 1]);
        else if (!strcmp(argv[i], "--in-flight")) in_flight = atoi(argv[i + 1]);
        else wanted = 0;
    }
    if (!target_count || !file || wanted < 1) {
        fprintf(stderr, "usage: follow --target HOST:PORT --requests FILE --streams N [--in-flight N]\n");
        return 2;
    }
    read_requests(file);
    streams = calloc((size_t)wanted, sizeof *streams);
    poller = epoll_create1(EPOLL_CLOEXEC);
    struct epoll_event input = {.events = EPOLLIN, .data.ptr = NULL};
    fcntl(0, F_SETFL, fcntl(0, F_GETFL) | O_NONBLOCK);
    if (epoll_ctl(poller, EPOLL_CTL_ADD, 0, &input)) die("standard input");
    for (int i = 0; i < wanted; i++) streams[i] = (struct stream){.index = i, .retry = 3000000};
    zero();
    int64_t began = now_us(), looked = 0;
    for (;;) {
        struct epoll_event events[512];
        counts.latest = now_us();
        if (counts.latest - looked >= TICK * 1000) {
            looked = counts.latest;
            for (int i = 0; i < wanted && connecting < in_flight; i++)
                if (streams[i].state == WAITING && streams[i].due <= looked) start(&streams[i]);
        }
        if (!announced && ready + (int)counts.closed == wanted) {
            announced = 1;
            printf("{\"ready\":%d,\"refused\":%llu,\"seconds\":%.6f}\n", ready, (unsigned long long)counts.closed,
                   (double)(now_us() - began) / 1e6);
            fflush(stdout);
        }
        int count = epoll_wait(poller, events, 512, TICK);
        if (count < 0 && errno != EINTR) die("epoll_wait");
        for (int i = 0; i < count; i++) {
            struct stream *s = events[i].data.ptr;
            if (!s) {
                if (!command()) return 0;
            } else if (s->state == CONNECTING) {
                int error = 0;
                socklen_t size = sizeof error;
                getsockopt(s->fd, SOL_SOCKET, SO_ERROR, &error, &size);
                counts.latest = now_us();
                if (error) finish(s);
                else ask(s);
            } else if (s->state != CLOSED && s->state != WAITING) readable(s);
        }
    }
}

/* The load generator: opens many Server-Sent Events streams and measures what arrives on them.
 *
 *   load --target HOST:PORT [--target …] --requests FILE --streams N [--in-flight 256] [--sources 1] [--mark TEXT]
 *        [--numbered TOPICS/EACH [--stay 0]]
 *
 * FILE has one line per request, "PATH" or "PATH TOKEN"; streams take the lines in turn, and the targets in turn.
 * A stream is ready when MARK was seen on it (default: the end of the response's head).
 *
 * It must be much cheaper than what it measures, so it parses nothing: it looks for stamps, "@GTTTTTTTTTTTTTTTT@":
 * one digit that names a group, and sixteen of the microseconds of CLOCK_MONOTONIC at which the event was *due*
 * to be sent. So what a server or a publisher delays counts as latency, also while nothing is sent (there is no
 * coordinated omission). Latencies go into a histogram per group, with 64 steps to each power of two: within 1.6 %.
 *
 * It prints one line of JSON when all streams are ready, then obeys lines on its standard input:
 *   zero    forget what was counted
 *   report  print one line of JSON
 *   stall N stop reading on the first N streams; "stall 0" reads on
 *   cut MS  with --numbered: close all streams but the first STAY, which come back within MS milliseconds
 *   quit    (or the end of the input)
 */
#include "common.h"

#include <fcntl.h>
#include <netinet/tcp.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

enum { GROUPS = 10, STAMP = 19, SECONDS = 3600, BUFFER = 256 * 1024 };

struct stream {
    int fd;
    uint8_t state; /* one of the below */
    uint8_t held;  /* bytes in `tail` */
    uint16_t matched;
    uint32_t index;
    int64_t began;
    char tail[STAMP + 1]; /* the beginning of a stamp that was cut by the end of what was read */
};
enum { WAITING, CONNECTING, ASKED, READY, GONE };

struct counts {
    uint64_t events, bytes, reads, bad;
    int64_t first, last; /* arrivals, microseconds */
    uint64_t buckets[GROUPS][BUCKETS];
    uint64_t by_group[GROUPS];
    int64_t largest[GROUPS];
    uint64_t per_second[SECONDS];
    int64_t zero;
};

static struct stream *streams;
static uint8_t *opened; /* by stream: whether it was ready once */
static struct counts counts;
static int wanted, in_flight = 256, sources = 1, stalled;
static int next_stream, connecting, ready, refused, ended, poller;
static const char *mark = "\r\n\r\n";
static size_t mark_length;
static uint64_t handshakes[BUCKETS];
static char buffer[BUFFER + STAMP];

static void count_event(int group, int64_t due, int64_t now) {
    int64_t latency = now - due;
    counts.events++;
    counts.by_group[group]++;
    counts.buckets[group][bucket_of(latency)]++;
    if (latency > counts.largest[group]) counts.largest[group] = latency;
    if (!counts.first) counts.first = now;
    counts.last = now;
    int64_t second = (now - counts.zero) / 1000000;
    if (second >= 0 && second < SECONDS) counts.per_second[second]++;
}

#include "numbered.h"

static void arrived(const char *stamp, int64_t now) {
    int64_t due = 0;
    int group = stamp[1] - '0';
    for (int i = 2; i < STAMP - 1; i++) {
        unsigned digit = (unsigned)(stamp[i] - '0');
        if (digit > 9) {
            counts.bad++;
            return;
        }
        due = due * 10 + digit;
    }
    if (group < 0 || group >= GROUPS || stamp[STAMP - 1] != '@') {
        counts.bad++;
        return;
    }
    count_event(group, due, now);
}

/* Finds the stamps in `length` bytes at `data`; what may begin one at the end is kept for the next read. */
static void scan(struct stream *s, const char *data, size_t length, int64_t now) {
    const char *end = data + length;
    while ((data = memchr(data, '@', (size_t)(end - data)))) {
        if (end - data < STAMP) {
            s->held = (uint8_t)(end - data);
            memcpy(s->tail, data, s->held);
            return;
        }
        arrived(data, now);
        data += STAMP;
    }
}

static void start(int index) {
    struct stream *s = &streams[index];
    struct epoll_event event = {.events = EPOLLOUT, .data.ptr = s};
    int one = 1;
    s->index = (uint32_t)index;
    s->matched = 0;
    if (topics) numbered_begin(index);
    s->fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (s->fd < 0) die("socket");
    if (sources > 1) {
        struct sockaddr_in from = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(0x7f000001u + (uint32_t)(index % sources))};
        setsockopt(s->fd, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &one, sizeof one);
        if (bind(s->fd, (struct sockaddr *)&from, sizeof from)) die("bind");
    }
    s->state = CONNECTING;
    s->began = now_us();
    connecting++;
    struct sockaddr_in *to = &targets[index % target_count];
    if (connect(s->fd, (struct sockaddr *)to, sizeof *to) && errno != EINPROGRESS) die("connect");
    if (epoll_ctl(poller, EPOLL_CTL_ADD, s->fd, &event)) die("epoll_ctl");
}

static void gone(struct stream *s) {
    if (topics) {
        if (s->state != READY) connecting--;
        numbered_gone((int)s->index, now_us());
    } else if (s->state == READY) ended++;
    else {
        connecting--;
        refused++;
    }
    s->state = GONE;
    close(s->fd);
}

static void ask(struct stream *s) {
    static char head[16 * 1024];
    const char *line = requests[(int)s->index % request_count];
    const char *space = strchr(line, ' ');
    int path = space ? (int)(space - line) : (int)strlen(line);
    int length = snprintf(head, sizeof head, "GET %.*s HTTP/1.1\r\nHost: bench\r\nAccept: text/event-stream\r\n%s%s%s",
                          path, line, space ? "Authorization: Bearer " : "", space ? space + 1 : "", space ? "\r\n" : "");
    if (topics && *sequences[s->index].id)
        length += snprintf(head + length, sizeof head - (size_t)length, "Last-Event-ID: %s\r\n", sequences[s->index].id);
    length += snprintf(head + length, sizeof head - (size_t)length, "\r\n");
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = s};
    if (send(s->fd, head, (size_t)length, MSG_NOSIGNAL) != length) {
        gone(s);
        return;
    }
    s->state = ASKED;
    epoll_ctl(poller, EPOLL_CTL_MOD, s->fd, &event);
}

/* Whether the mark was seen; it may come in pieces. The head's first line must say 200. */
static int marked(struct stream *s, const char *data, size_t length) {
    for (size_t i = 0; i < length; i++) {
        if (data[i] == mark[s->matched]) s->matched++;
        else s->matched = data[i] == mark[0];
        if (s->matched == mark_length) return 1;
    }
    return 0;
}

static void readable(struct stream *s) {
    char *data = buffer + STAMP;
    ssize_t got = recv(s->fd, data, BUFFER, 0);
    if (got <= 0) {
        if (got < 0 && (errno == EAGAIN || errno == EINTR)) return;
        gone(s);
        return;
    }
    int64_t now = now_us();
    counts.reads++;
    counts.bytes += (uint64_t)got;
    if (s->state == ASKED) {
        if (!s->matched && got > 12 && !memcmp(data, "HTTP/1.1 ", 9) && memcmp(data + 9, "200", 3)) {
            if (!refused) fprintf(stderr, "load: refused: %.*s\n", (int)(got < 400 ? got : 400), data);
            gone(s);
            return;
        }
        if (marked(s, data, (size_t)got)) {
            s->state = READY;
            connecting--;
            if (!opened[s->index]) ready++;
            opened[s->index] = 1;
            handshakes[bucket_of(now - s->began)]++;
        }
    }
    if (topics) {
        numbered_data((int)s->index, data, (size_t)got, now);
        return;
    }
    if (s->held) {
        data -= s->held;
        memcpy(data, s->tail, s->held);
        got += s->held;
        s->held = 0;
    }
    scan(s, data, (size_t)got, now);
}

static void zero(void) {
    memset(&counts, 0, sizeof counts);
    counts.zero = now_us();
}

static void report(void) {
    int64_t now = now_us();
    putchar('{');
    if (topics) numbered_report(wanted);
    printf("\"events\":%llu,\"bytes\":%llu,\"reads\":%llu,\"bad\":%llu,\"ended\":%d,\"cpu\":%.3f,\"seconds\":%.6f,\"spread\":%lld,\"groups\":[",
           (unsigned long long)counts.events, (unsigned long long)counts.bytes, (unsigned long long)counts.reads,
           (unsigned long long)counts.bad, ended, cpu_seconds(), (double)(now - counts.zero) / 1e6,
           (long long)(counts.last - counts.first));
    for (int i = 0; i < GROUPS; i++) {
        if (i) putchar(',');
        print_quantiles(counts.buckets[i], counts.by_group[i], counts.largest[i]);
    }
    printf("],\"per_second\":[");
    int64_t last = (now - counts.zero) / 1000000;
    for (int64_t i = 0; i <= last && i < SECONDS; i++) printf(i ? ",%llu" : "%llu", (unsigned long long)counts.per_second[i]);
    printf("]}\n");
    fflush(stdout);
}

static void stall(int count) {
    for (int i = 0; i < (count > stalled ? count : stalled) && i < wanted; i++) {
        struct epoll_event event = {.events = i < count ? 0 : EPOLLIN, .data.ptr = &streams[i]};
        if (streams[i].state == READY) epoll_ctl(poller, EPOLL_CTL_MOD, streams[i].fd, &event);
    }
    stalled = count;
}

static void cut(int64_t spread) {
    int64_t now = now_us();
    memset(&storm, 0, sizeof storm);
    storm.cut_at = now;
    for (int i = stay; i < wanted; i++) {
        struct stream *s = &streams[i];
        if (s->state != READY) continue;
        s->state = GONE;
        close(s->fd);
        sequences[i].cut = now;
        sequences[i].come_back = now + (int64_t)(random() % (spread * 1000 + 1));
        away++;
    }
}

/* Streams that are due to come back. */
static void tick(void) {
    int64_t now = now_us();
    for (int i = stay; away && i < wanted; i++)
        if (streams[i].state == GONE && sequences[i].come_back <= now) {
            away--;
            storm.attempts++;
            start(i);
        }
}

static int command(void) {
    static char line[256];
    static size_t length;
    ssize_t got = read(0, line + length, sizeof line - 1 - length);
    if (got <= 0) return got < 0 && errno == EAGAIN;
    length += (size_t)got;
    line[length] = 0;
    char *end;
    while ((end = strchr(line, '\n'))) {
        *end = 0;
        if (!strcmp(line, "zero")) zero();
        else if (!strcmp(line, "report")) report();
        else if (!strncmp(line, "stall ", 6)) stall(atoi(line + 6));
        else if (!strncmp(line, "cut ", 4)) cut(atoi(line + 4));
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
        else if (!strcmp(argv[i], "--sources")) sources = atoi(argv[i + 1]);
        else if (!strcmp(argv[i], "--mark")) mark = argv[i + 1];
        else if (!strcmp(argv[i], "--stay")) stay = atoi(argv[i + 1]);
        else if (!strcmp(argv[i], "--numbered") && sscanf(argv[i + 1], "%d/%d", &topics, &each) == 2 && each && !(topics % each)) continue;
        else {
            fprintf(stderr, "load: unknown option %s\n", argv[i]);
            return 2;
        }
    }
    if (!target_count || !file || wanted < 1) {
        fprintf(stderr, "usage: load --target HOST:PORT --requests FILE --streams N\n");
        return 2;
    }
    mark_length = strlen(mark);
    read_requests(file);
    streams = calloc((size_t)wanted, sizeof *streams);
    opened = calloc((size_t)wanted, 1);
    if (topics) numbered_init(wanted);
    poller = epoll_create1(EPOLL_CLOEXEC);
    struct epoll_event input = {.events = EPOLLIN, .data.ptr = NULL};
    fcntl(0, F_SETFL, fcntl(0, F_GETFL) | O_NONBLOCK);
    if (epoll_ctl(poller, EPOLL_CTL_ADD, 0, &input)) die("standard input");
    zero();
    int64_t began = now_us();
    int announced = 0;
    for (;;) {
        while (next_stream < wanted && connecting < in_flight) start(next_stream++);
        if (!announced && ready + refused == wanted) {
            announced = 1;
            printf("{\"ready\":%d,\"refused\":%d,\"seconds\":%.6f,\"cpu\":%.3f,\"handshake\":", ready, refused,
                   (double)(now_us() - began) / 1e6, cpu_seconds());
            print_quantiles(handshakes, (uint64_t)ready, 0);
            printf("}\n");
            fflush(stdout);
        }
        struct epoll_event events[512];
        int count = epoll_wait(poller, events, 512, away ? 2 : -1);
        if (count < 0 && errno != EINTR) die("epoll_wait");
        if (away) tick();
        for (int i = 0; i < count; i++) {
            struct stream *s = events[i].data.ptr;
            if (!s) {
                if (!command()) return 0;
            } else if (s->state == CONNECTING) {
                int error = 0;
                socklen_t size = sizeof error;
                getsockopt(s->fd, SOL_SOCKET, SO_ERROR, &error, &size);
                if (error) gone(s);
                else ask(s);
            } else if (s->state != GONE) readable(s);
        }
    }
}

/* The floor: the least that a server can do which sends each event to each of its streams by a send() of its own.
 *
 *   floor [PORT]      prints "floor listening on http://127.0.0.1:PORT"
 *
 *   GET /events?topics=0,7,…                                        a stream of these topics (default: 0)
 *   GET /publish?rate=R&seconds=S&topics=N&size=B&group=G&first=F   R events a second for S seconds, over N topics from F on
 *   GET /publish?…&now=1                                            stamped when they are sent, not when they were due
 *
 * No parser, no authentication, no history, no limits. What a socket does not take at once waits in a buffer of
 * the stream. Events carry the stamp that the load generator looks for; see ../load/load.c.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

enum { TOPICS = 1 << 17, LARGEST = 64 * 1024 };

struct stream {
    int fd;
    int open;
    char *waiting;
    size_t length, room;
};

struct topic {
    struct stream **streams;
    int count, room;
};

static struct topic topics[TOPICS];
static int poller, timer;
static struct {
    int64_t began;
    double rate, seconds;
    int topics, size, group, first, now;
    uint64_t done;
    int on;
} run;

static int64_t now_us(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000 + t.tv_nsec / 1000;
}

static void die(const char *what) {
    perror(what);
    exit(1);
}

static void watch(struct stream *s, uint32_t events, int how) {
    struct epoll_event event = {.events = events, .data.ptr = s};
    epoll_ctl(poller, how, s->fd, &event);
}

static void write_to(struct stream *s, const char *data, size_t length) {
    if (!s->open) return;
    if (!s->length) {
        ssize_t sent = send(s->fd, data, length, MSG_NOSIGNAL);
        if (sent == (ssize_t)length) return;
        if (sent < 0 && errno != EAGAIN) return;
        if (sent < 0) sent = 0;
        data += sent;
        length -= (size_t)sent;
        watch(s, EPOLLIN | EPOLLOUT, EPOLL_CTL_MOD);
    }
    if (s->length + length > s->room) {
        s->room = (s->length + length) * 2;
        s->waiting = realloc(s->waiting, s->room);
    }
    memcpy(s->waiting + s->length, data, length);
    s->length += length;
}

static void writable(struct stream *s) {
    ssize_t sent = send(s->fd, s->waiting, s->length, MSG_NOSIGNAL);
    if (sent < 0) return;
    s->length -= (size_t)sent;
    memmove(s->waiting, s->waiting + sent, s->length);
    if (!s->length) watch(s, EPOLLIN, EPOLL_CTL_MOD);
}

static void publish(int number, int64_t due) {
    static char event[LARGEST + 64];
    struct topic *t = &topics[number % TOPICS];
    int length = sprintf(event, "data: {\"t\":\"@%d%016lld@\",\"x\":\"", run.group, (long long)due);
    int left = run.size - (length - 6) - 2;
    for (; left > 0; left--) event[length++] = 'x';
    memcpy(event + length, "\"}\n\n", 4);
    length += 4;
    for (int i = 0; i < t->count; i++) write_to(t->streams[i], event, (size_t)length);
}

static void tick(void) {
    uint64_t expirations;
    if (read(timer, &expirations, sizeof expirations) < 0) return;
    int64_t now = now_us();
    double elapsed = (double)(now - run.began) / 1e6;
    if (elapsed > run.seconds) elapsed = run.seconds;
    uint64_t due = (uint64_t)(elapsed * run.rate);
    for (; run.done < due; run.done++)
        publish(run.first + (int)(run.done % (uint64_t)run.topics),
                run.now ? now_us() : run.began + (int64_t)((double)(run.done + 1) / run.rate * 1e6));
    if (now - run.began >= run.seconds * 1e6) {
        struct itimerspec off = {0};
        timerfd_settime(timer, 0, &off, NULL);
        run.on = 0;
    }
}

static double number(const char *text, const char *name, double otherwise) {
    char *found = strstr(text, name);
    return found ? atof(found + strlen(name)) : otherwise;
}

static void asked(struct stream *s) {
    static char text[64 * 1024];
    ssize_t got = recv(s->fd, text, sizeof text - 1, 0);
    if (got <= 0) {
        if (got < 0 && errno == EAGAIN) return;
        s->open = 0; /* it stays where it is: nobody leaves while the floor is measured */
        close(s->fd);
        return;
    }
    text[got] = 0;
    if (!strncmp(text, "GET /publish", 12)) {
        static const char answer[] = "HTTP/1.1 202 Accepted\r\nContent-Length: 0\r\n\r\n";
        struct itimerspec each_ms = {.it_interval.tv_nsec = 1000000, .it_value.tv_nsec = 1000000};
        run.rate = number(text, "rate=", 1);
        run.seconds = number(text, "seconds=", 1);
        run.topics = (int)number(text, "topics=", 1);
        run.size = (int)number(text, "size=", 150);
        run.group = (int)number(text, "group=", 0);
        run.first = (int)number(text, "first=", 0);
        run.now = (int)number(text, "now=", 0);
        run.done = 0;
        run.on = 1;
        run.began = now_us();
        if (send(s->fd, answer, sizeof answer - 1, MSG_NOSIGNAL) < 0) return;
        timerfd_settime(timer, 0, &each_ms, NULL);
        return;
    }
    static const char head[] = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nCache-Control: no-store\r\n\r\n: hello\n\n";
    write_to(s, head, sizeof head - 1);
    char *list = strstr(text, "topics="), *end = strstr(text, " HTTP");
    char first[] = "0 ";
    list = list && list < end ? list + 7 : first;
    for (;;) {
        struct topic *t = &topics[strtol(list, &list, 10) % TOPICS];
        if (t->count == t->room) t->streams = realloc(t->streams, sizeof *t->streams * (size_t)(t->room = t->room ? t->room * 2 : 4));
        t->streams[t->count++] = s;
        if (*list++ != ',') break;
    }
}

int main(int argc, char **argv) {
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0), one = 1;
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)(argc > 1 ? atoi(argv[1]) : 0))};
    socklen_t size = sizeof address;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    setsockopt(listener, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    if (bind(listener, (struct sockaddr *)&address, sizeof address) || listen(listener, 4096)) die("listen");
    getsockname(listener, (struct sockaddr *)&address, &size);
    poller = epoll_create1(0);
    timer = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK);
    struct stream listening = {.fd = listener}, ticking = {.fd = timer};
    watch(&listening, EPOLLIN, EPOLL_CTL_ADD);
    watch(&ticking, EPOLLIN, EPOLL_CTL_ADD);
    printf("floor listening on http://127.0.0.1:%d\n", ntohs(address.sin_port));
    fflush(stdout);
    for (;;) {
        struct epoll_event events[256];
        int count = epoll_wait(poller, events, 256, -1);
        for (int i = 0; i < count; i++) {
            struct stream *s = events[i].data.ptr;
            if (s == &ticking) tick();
            else if (s == &listening) {
                int fd;
                while ((fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK)) >= 0) {
                    struct stream *new = calloc(1, sizeof *new);
                    new->fd = fd;
                    new->open = 1;
                    watch(new, EPOLLIN, EPOLL_CTL_ADD);
                }
            } else {
                if (events[i].events & EPOLLOUT) writable(s);
                if (events[i].events & (EPOLLIN | EPOLLHUP)) asked(s);
            }
        }
    }
}

/* What the load generators share: whom they ask and for what, time, and histograms. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>

enum { STEPS = 64, BUCKETS = 64 * 40, TARGETS = 64 };

static struct sockaddr_in targets[TARGETS];
static char **requests; /* "PATH" or "PATH TOKEN" each */
static int request_count, target_count;

static void die(const char *what) {
    fprintf(stderr, "load: %s: %s\n", what, strerror(errno));
    exit(1);
}

/* Microseconds of CLOCK_MONOTONIC. */
static int64_t now_us(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000 + t.tv_nsec / 1000;
}

/* Histogram, within 1.6 %: values below STEPS each have a bucket, above them each power of two has STEPS / 2. */
static int bucket_of(int64_t value) {
    if (value < STEPS) return value < 0 ? 0 : (int)value;
    int shift = 63 - __builtin_clzll((uint64_t)value) - 5;
    int found = shift * (STEPS / 2) + (int)(value >> shift);
    return found < BUCKETS ? found : BUCKETS - 1;
}

static int64_t value_of(int bucket) {
    if (bucket < STEPS) return bucket;
    int shift = bucket / (STEPS / 2) - 1;
    return ((int64_t)(bucket - shift * (STEPS / 2)) << shift) + (((int64_t)1 << shift) >> 1);
}

static int64_t quantile(const uint64_t *buckets, uint64_t total, double part) {
    uint64_t rank = (uint64_t)(part * (double)total), seen = 0;
    if (rank >= total && total) rank = total - 1;
    for (int i = 0; i < BUCKETS; i++) {
        seen += buckets[i];
        if (seen > rank) return value_of(i);
    }
    return 0;
}

static void print_quantiles(const uint64_t *buckets, uint64_t total, int64_t largest) {
    printf("{\"count\":%llu,\"p50\":%lld,\"p90\":%lld,\"p99\":%lld,\"p999\":%lld,\"max\":%lld}",
           (unsigned long long)total, (long long)quantile(buckets, total, 0.5), (long long)quantile(buckets, total, 0.9),
           (long long)quantile(buckets, total, 0.99), (long long)quantile(buckets, total, 0.999), (long long)largest);
}

static double cpu_seconds(void) {
    struct rusage use;
    getrusage(RUSAGE_SELF, &use);
    return (double)use.ru_utime.tv_sec + (double)use.ru_stime.tv_sec + (double)(use.ru_utime.tv_usec + use.ru_stime.tv_usec) / 1e6;
}

static void add_target(char *text) {
    char *colon = strrchr(text, ':');
    if (!colon || target_count == TARGETS) die("--target");
    *colon = 0;
    targets[target_count].sin_family = AF_INET;
    targets[target_count].sin_port = htons((uint16_t)atoi(colon + 1));
    if (inet_pton(AF_INET, text, &targets[target_count++].sin_addr) != 1) die("--target");
}

static void read_requests(const char *path) {
    FILE *file = fopen(path, "r");
    char *line = NULL;
    size_t room = 0;
    ssize_t length;
    if (!file) die(path);
    while ((length = getline(&line, &room, file)) > 0) {
        while (length && (line[length - 1] == '\n' || line[length - 1] == '\r')) line[--length] = 0;
        requests = realloc(requests, sizeof *requests * (size_t)(request_count + 1));
        requests[request_count++] = strdup(line);
    }
    fclose(file);
    if (!request_count) die("no requests");
}

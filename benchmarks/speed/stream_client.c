/* A client of many streams: measures how long each token was on its way.
 *
 * stream_client PORT STREAMS BODY_FILE TARGET_POD
 *
 * Prints streams that were complete, tokens, tokens per second, and the median and the 99th
 * percentile of the tokens' way in microseconds. The figures are those of the time in which all
 * streams flowed.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

enum { MAX_FILES = 65536, KEPT = 64, MAX_TOKENS = 4000000, PATIENCE_MS = 30000 };
static const char MARK[] = "\"sent_ns\":";
enum { MARK_LENGTH = sizeof MARK - 1, STAMP_LENGTH = 19 };

struct stream {
    char tail[KEPT]; /* end of what was read, in which a stamp or the end may have begun */
    int tail_used;
    int64_t first_ns, last_ns;
};

struct token { int64_t sent_ns, way_ns; };

static struct stream *streams[MAX_FILES];
static struct token tokens[MAX_TOKENS];
static int token_count;

static int64_t now_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1000000000LL + now.tv_nsec;
}

/* Notes the tokens in what was read; returns whether the stream is complete. */
static int read_tokens(struct stream *s, char *text, int length) {
    int64_t now = now_ns();
    char *from = text, *end = text + length, *mark;
    while ((mark = memmem(from, end - from, MARK, MARK_LENGTH))) {
        if (end - mark < MARK_LENGTH + STAMP_LENGTH) break;
        int64_t sent = strtoll(mark + MARK_LENGTH, NULL, 10);
        if (!s->first_ns) s->first_ns = sent;
        s->last_ns = sent;
        if (token_count < MAX_TOKENS) tokens[token_count++] = (struct token){sent, now - sent};
        from = mark + MARK_LENGTH + STAMP_LENGTH;
    }
    int done = memmem(from, end - from, "[DONE]", 6) != NULL;
    s->tail_used = end - from < KEPT - 1 ? end - from : KEPT - 1;
    memmove(s->tail, end - s->tail_used, s->tail_used);
    return done;
}

static int compare(const void *a, const void *b) {
    int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
    return (x > y) - (x < y);
}

int main(int argc, char **argv) {
    if (argc != 5) return 2;
    int wanted = atoi(argv[2]), open_streams = 0, complete = 0, yes = 1;
    struct rlimit files;
    getrlimit(RLIMIT_NOFILE, &files);
    files.rlim_cur = files.rlim_max;
    setrlimit(RLIMIT_NOFILE, &files);
    static char request[4 << 20], buffer[1 << 16];
    FILE *body_file = fopen(argv[3], "rb");
    if (!body_file) { perror(argv[3]); return 1; }
    static char body[2 << 20];
    int body_length = fread(body, 1, sizeof body, body_file);
    int length = snprintf(request, sizeof request,
        "POST /v1/chat/completions HTTP/1.1\r\nhost: benchmark\r\ncontent-type: application/json\r\n"
        "target-pod: %s\r\ncontent-length: %d\r\n\r\n", argv[4], body_length);
    memcpy(request + length, body, body_length);
    length += body_length;
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(atoi(argv[1]))};
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    int poll = epoll_create1(0);
    static int fds[MAX_FILES];
    for (int i = 0; i < wanted; i++) {
        int fd = socket(AF_INET, SOCK_STREAM, 0);
        if (fd < 0 || fd >= MAX_FILES || connect(fd, (struct sockaddr *)&address, sizeof address)) {
            perror("connect");
            return 1;
        }
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes);
        if (write(fd, request, length) != length) { perror("write"); return 1; }
        streams[fd] = calloc(1, sizeof **streams);
        fds[i] = fd;
        struct epoll_event event = {.events = EPOLLIN, .data.fd = fd};
        epoll_ctl(poll, EPOLL_CTL_ADD, fd, &event);
        open_streams++;
    }
    struct epoll_event events[256];
    while (open_streams) {
        int count = epoll_wait(poll, events, 256, PATIENCE_MS);
        if (count <= 0) break;
        for (int i = 0; i < count; i++) {
            int fd = events[i].data.fd;
            struct stream *s = streams[fd];
            memcpy(buffer, s->tail, s->tail_used);
            ssize_t got = read(fd, buffer + s->tail_used, sizeof buffer - s->tail_used);
            int done = got > 0 && read_tokens(s, buffer, s->tail_used + got);
            if (!done && got > 0) continue;
            complete += done;
            open_streams--;
            close(fd);
        }
    }
    int64_t from = 0, to = INT64_MAX;
    for (int i = 0; i < wanted; i++) {
        struct stream *s = streams[fds[i]];
        if (s->first_ns > from) from = s->first_ns;
        if (s->last_ns < to) to = s->last_ns;
    }
    static int64_t ways[MAX_TOKENS];
    int counted = 0;
    for (int i = 0; i < token_count; i++)
        if (tokens[i].sent_ns >= from && tokens[i].sent_ns <= to) ways[counted++] = tokens[i].way_ns;
    if (!counted) { fprintf(stderr, "the streams did not flow together\n"); return 1; }
    qsort(ways, counted, sizeof *ways, compare);
    printf("%d %d %.1f %.1f %.1f\n", complete, token_count, counted / ((to - from) / 1e9),
        ways[counted / 2] / 1e3, ways[(int)(counted * 0.99)] / 1e3);
    return 0;
}

/* An engine that streams: stamped server-sent events at an even pace, after any POST.
 *
 * stream_server PORT TOKENS INTERVAL_US
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

enum { MAX_CONNECTIONS = 65536, HEAD_BYTES = 16384 };

struct connection {
    char head[HEAD_BYTES];
    int head_used;
    long body_left; /* -1 while the head is read */
    int tokens_left;
    int64_t due_ns;
};

static struct connection *connections[MAX_CONNECTIONS];
static int tokens;
static int64_t interval_ns;

static int64_t now_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1000000000LL + now.tv_nsec;
}

static void drop(int fd) {
    free(connections[fd]);
    connections[fd] = NULL;
    close(fd);
}

static void send_all(int fd, const char *text, int length) {
    /* Events are far smaller than a socket's buffer: a partial write means a client that hangs. */
    if (write(fd, text, length) != length) drop(fd);
}

static void start_stream(int fd, struct connection *c) {
    static const char head[] =
        "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n";
    /* Streams that began together must not send together for ever. */
    c->due_ns = now_ns() + (uint32_t)(fd * 2654435761u) % interval_ns;
    c->tokens_left = tokens;
    c->head_used = 0;
    c->body_left = -1;
    send_all(fd, head, sizeof head - 1);
}

/* The router asks for metrics, too. */
static void refuse(int fd, struct connection *c) {
    static const char answer[] = "HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n";
    c->head_used = 0;
    c->body_left = -1;
    send_all(fd, answer, sizeof answer - 1);
}

static void read_request(int fd) {
    static char buffer[1 << 16];
    struct connection *c = connections[fd];
    ssize_t count = read(fd, buffer, sizeof buffer);
    if (count <= 0) {
        if (count == 0 || errno != EAGAIN) drop(fd);
        return;
    }
    if (c->body_left < 0) {
        int room = HEAD_BYTES - 1 - c->head_used;
        int taken = count < room ? count : room;
        memcpy(c->head + c->head_used, buffer, taken);
        c->head_used += taken;
        c->head[c->head_used] = 0;
        char *end = strstr(c->head, "\r\n\r\n");
        if (!end) return;
        char *length = strcasestr(c->head, "\r\ncontent-length:");
        c->body_left = length ? atol(length + 17) : 0;
        c->body_left -= c->head + c->head_used - end - 4 + count - taken;
    } else {
        c->body_left -= count;
    }
    if (c->body_left > 0) return;
    if (strncmp(c->head, "POST", 4)) refuse(fd, c);
    else start_stream(fd, c);
}

static void send_due_tokens(int highest) {
    char event[256], chunk[300];
    for (int fd = 0; fd <= highest; fd++) {
        struct connection *c = connections[fd];
        if (!c || !c->tokens_left) continue;
        int64_t now = now_ns();
        if (c->due_ns > now) continue;
        c->due_ns += interval_ns;
        int last = --c->tokens_left == 0;
        int length = snprintf(event, sizeof event,
            "data: {\"choices\":[{\"delta\":{\"content\":\" token\"}}],\"sent_ns\":%019lld}\n\n%s",
            (long long)now, last ? "data: [DONE]\n\n" : "");
        length = snprintf(chunk, sizeof chunk, "%x\r\n%s\r\n%s", length, event,
            last ? "0\r\n\r\n" : "");
        send_all(fd, chunk, length);
    }
}

int main(int argc, char **argv) {
    if (argc != 4) return 2;
    tokens = atoi(argv[2]);
    interval_ns = atoll(argv[3]) * 1000;
    struct rlimit files;
    getrlimit(RLIMIT_NOFILE, &files);
    files.rlim_cur = files.rlim_max;
    setrlimit(RLIMIT_NOFILE, &files);
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0), yes = 1, highest = 0;
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes);
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(atoi(argv[1]))};
    address.sin_addr.s_addr = htonl(INADDR_ANY);
    if (bind(listener, (struct sockaddr *)&address, sizeof address) || listen(listener, 4096)) {
        perror("stream_server");
        return 1;
    }
    int poll = epoll_create1(0);
    struct epoll_event wanted = {.events = EPOLLIN, .data.fd = listener}, events[256];
    epoll_ctl(poll, EPOLL_CTL_ADD, listener, &wanted);
    for (;;) {
        int count = epoll_wait(poll, events, 256, 1);
        for (int i = 0; i < count; i++) {
            int fd = events[i].data.fd;
            if (fd != listener) {
                if (connections[fd]) read_request(fd);
                continue;
            }
            while ((fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK)) >= 0) {
                if (fd >= MAX_CONNECTIONS) { close(fd); continue; }
                setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes);
                connections[fd] = calloc(1, sizeof **connections);
                connections[fd]->body_left = -1;
                wanted.data.fd = fd;
                epoll_ctl(poll, EPOLL_CTL_ADD, fd, &wanted);
                if (fd > highest) highest = fd;
            }
        }
        send_due_tokens(highest);
    }
}

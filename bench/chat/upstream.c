/* The bench's upstream: answers chat completions at once, or streams tokens at an exact pace. One thread, epoll, HTTP/1.1 keep-alive.
 *
 *     upstream        listens on a free port of 127.0.0.1, prints "port N", serves until it is killed
 *
 * A body with "stream": true gets a stream; the words pace_us=N and tokens=N anywhere in it (a gateway passes a message's text on,
 * but not always a field it does not know) say how long from one token to the next and how many. Each token's text is "SEQUENCE:SENT",
 * SENT in nanoseconds of CLOCK_MONOTONIC. GET /stats tells what was asked and how many clients left before their answer was complete.
 *
 * More words: wait_us=N, so long before the first token or the whole answer; half=1, with the first half of a whole answer at once;
 * status=N, an error instead; cut=N, a stream is cut after so many tokens; tag=N, a client that leaves is named in GET /left by this
 * number, with the time at which it was noticed, in nanoseconds like a token's. Each departure is told once.
 *
 * Rule: the time in a token is taken where the token is made. Whatever holds it up later, our own send buffer too, counts as delay.
 * Without a pace tokens are made as there is room to send them, so that a client that does not read costs no memory here.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

enum { BATCH = 512, READ_SIZE = 65536, MAX_HEAD = 65536, MAX_BODY = 64 << 20, FRAME_SIZE = 1024, ROOM = 65536 };

typedef struct {
    char *data;
    size_t length, capacity;
} Buffer;

typedef struct {
    int fd;
    Buffer in, out;
    size_t written; /* of out */
    bool asked, streaming, include_usage, waits_for_room, cut_off; /* asked: an answer is not complete; cut_off: close when all is sent */
    long sequence, tokens, cut, tag;
    size_t rest; /* where the part of the whole answer begins that is sent when it is due */
    uint64_t pace_ns, due_ns;
    size_t place; /* in the heap, from 1; 0: not there */
} Connection;

static struct {
    long requests, streams_started, streams_finished, closed_early, connections, open, running, held_back, tokens;
} stats;

typedef struct {
    long tag;
    uint64_t at_ns;
} Departure;

static Departure *departures; /* not told yet */
static size_t departure_count, departure_capacity;

static int poller, timer;
static Connection **heap; /* streams by the time their next token is due; heap[0] is not used */
static size_t heap_length, heap_capacity;

static uint64_t now_ns(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (uint64_t)time.tv_sec * 1000000000u + (uint64_t)time.tv_nsec;
}

static void *must(void *memory) {
    if (memory == NULL) {
        fputs("upstream: out of memory\n", stderr);
        exit(1);
    }
    return memory;
}

static void append(Buffer *buffer, const char *data, size_t length) {
    if (buffer->length + length > buffer->capacity) {
        buffer->capacity = (buffer->length + length) * 2;
        buffer->data = must(realloc(buffer->data, buffer->capacity));
    }
    memcpy(buffer->data + buffer->length, data, length);
    buffer->length += length;
}

/* --- the heap of due tokens ------------------------------------------------------------------------------------------------------- */

static void put(Connection *connection, size_t place) {
    heap[place] = connection;
    connection->place = place;
}

static void sink(Connection *connection, size_t place) {
    for (size_t child; (child = 2 * place) <= heap_length; place = child) {
        if (child < heap_length && heap[child + 1]->due_ns < heap[child]->due_ns) child++;
        if (connection->due_ns <= heap[child]->due_ns) break;
        put(heap[child], place);
    }
    put(connection, place);
}

static void rise(Connection *connection, size_t place) {
    for (; place > 1 && connection->due_ns < heap[place / 2]->due_ns; place /= 2) put(heap[place / 2], place);
    put(connection, place);
}

static void schedule(Connection *connection) {
    if (connection->place != 0) {
        sink(connection, connection->place);
        return;
    }
    if (heap_length + 1 >= heap_capacity) {
        heap_capacity = heap_capacity ? heap_capacity * 2 : 1024;
        heap = must(realloc(heap, heap_capacity * sizeof *heap));
    }
    rise(connection, ++heap_length);
}

static void unschedule(Connection *connection) {
    size_t place = connection->place;
    if (place == 0) return;
    Connection *last = heap[heap_length--];
    connection->place = 0;
    if (last == connection) return;
    rise(last, place);
    sink(last, last->place);
}

/* --- writing ---------------------------------------------------------------------------------------------------------------------- */

static void watch(Connection *connection, bool for_room) {
    struct epoll_event event = {.events = EPOLLIN | EPOLLRDHUP | (for_room ? EPOLLOUT : 0), .data.ptr = connection};
    epoll_ctl(poller, EPOLL_CTL_MOD, connection->fd, &event);
    connection->waits_for_room = for_room;
    stats.held_back += for_room ? 1 : -1;
}

/* Send what is pending. False: the client is gone. */
static bool flush(Connection *connection) {
    Buffer *out = &connection->out;
    while (connection->written < out->length) {
        ssize_t sent = send(connection->fd, out->data + connection->written, out->length - connection->written, MSG_NOSIGNAL);
        if (sent < 0 && errno == EINTR) continue;
        if (sent < 0 && errno != EAGAIN) return false;
        if (sent < 0) {
            if (!connection->waits_for_room) watch(connection, true);
            return true;
        }
        connection->written += (size_t)sent;
    }
    out->length = connection->written = 0;
    if (connection->waits_for_room) watch(connection, false);
    return !connection->cut_off;
}

static void append_frame(Connection *connection, const char *data, size_t length) {
    char line[32];
    int size = snprintf(line, sizeof line, "%zx\r\n", length + 8);
    append(&connection->out, line, (size_t)size);
    append(&connection->out, "data: ", 6);
    append(&connection->out, data, length);
    append(&connection->out, "\n\n\r\n", 4);
}

#define CHUNK "{\"id\":\"chatcmpl-bench\",\"object\":\"chat.completion.chunk\",\"created\":1700000000,\"model\":\"bench\",\"choices\":["

static void append_chunk(Connection *connection, const char *delta, const char *finish) {
    char frame[FRAME_SIZE];
    int size = snprintf(frame, sizeof frame, CHUNK "{\"index\":0,\"delta\":%s,\"finish_reason\":%s}]}", delta, finish);
    append_frame(connection, frame, (size_t)size);
}

static void begin_answer(Connection *connection) {
    connection->asked = true;
    stats.running++;
}

static void end_answer(Connection *connection) {
    stats.running -= connection->asked;
    connection->asked = connection->streaming = false;
}

static void end_stream(Connection *connection) {
    append_chunk(connection, "{}", "\"stop\"");
    if (connection->include_usage) {
        char frame[FRAME_SIZE];
        int size = snprintf(frame, sizeof frame, CHUNK "],\"usage\":{\"prompt_tokens\":9,\"completion_tokens\":%ld,\"total_tokens\":%ld}}",
                            connection->tokens, connection->tokens + 9);
        append_frame(connection, frame, (size_t)size);
    }
    append_frame(connection, "[DONE]", 6);
    append(&connection->out, "0\r\n\r\n", 5);
    end_answer(connection);
    stats.streams_finished++;
}

static void next_token(Connection *connection) {
    char delta[96];
    snprintf(delta, sizeof delta, "{\"content\":\"%ld:%llu \"}", connection->sequence, (unsigned long long)now_ns());
    append_chunk(connection, delta, "null");
    stats.tokens++;
    connection->due_ns += connection->pace_ns;
    if (++connection->sequence == connection->cut) {
        connection->cut_off = true;
        end_answer(connection);
    } else if (connection->sequence == connection->tokens) {
        end_stream(connection);
    }
}

/* Make what an unpaced stream has room for. */
static void fill(Connection *connection) {
    while (connection->streaming && connection->out.length - connection->written < ROOM) next_token(connection);
}

/* --- requests --------------------------------------------------------------------------------------------------------------------- */

static void respond(Connection *connection, const char *status, const char *document) {
    char head[256];
    int size = snprintf(head, sizeof head, "HTTP/1.1 %s\r\ncontent-type: application/json\r\ncontent-length: %zu\r\n\r\n", status, strlen(document));
    append(&connection->out, head, (size_t)size);
    append(&connection->out, document, strlen(document));
}

static long number_after(const char *body, size_t length, const char *word, long otherwise) {
    const char *found = memmem(body, length, word, strlen(word));
    return found ? strtol(found + strlen(word), NULL, 10) : otherwise;
}

static bool says_true(const char *body, size_t length, const char *key) {
    const char *found = memmem(body, length, key, strlen(key));
    if (found == NULL) return false;
    const char *end = body + length;
    for (found += strlen(key); found < end && (*found == ' ' || *found == ':'); found++) continue;
    return end - found >= 4 && memcmp(found, "true", 4) == 0;
}

static void begin_stream(Connection *connection, const char *body, size_t length) {
    static const char head[] = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n";
    append(&connection->out, head, sizeof head - 1);
    append_chunk(connection, "{\"role\":\"assistant\",\"content\":\"\"}", "null");
    connection->pace_ns = (uint64_t)number_after(body, length, "pace_us=", 0) * 1000;
    connection->tokens = number_after(body, length, "tokens=", 16);
    if (connection->tokens < 1) connection->tokens = 1;
    connection->include_usage = says_true(body, length, "\"include_usage\"");
    connection->sequence = 0;
    connection->cut = number_after(body, length, "cut=", 0);
    connection->streaming = true;
    stats.streams_started++;
    if (connection->due_ns == 0) {
        connection->due_ns = now_ns();
        next_token(connection);
    }
    if (connection->streaming && (connection->pace_ns != 0 || connection->sequence == 0)) schedule(connection);
}

#define WHOLE                                                                                                                                  \
    "{\"id\":\"chatcmpl-bench\",\"object\":\"chat.completion\",\"created\":1700000000,\"model\":\"bench\",\"choices\":[{\"index\":0,\"message\":" \
    "{\"role\":\"assistant\",\"content\":\"A short answer, as long as many are: one sentence, or two.\"},\"finish_reason\":\"stop\"}],"          \
    "\"usage\":{\"prompt_tokens\":9,\"completion_tokens\":16,\"total_tokens\":25}}"

/* Its head, and as much of its body as comes at once. */
static void begin_whole(Connection *connection, bool half) {
    size_t length = connection->out.length;
    respond(connection, "200 OK", WHOLE);
    if (connection->due_ns == 0) {
        end_answer(connection);
        return;
    }
    connection->rest = half ? sizeof WHOLE / 2 : 0;
    connection->out.length = half ? connection->out.length - (sizeof WHOLE - 1 - connection->rest) : length;
    schedule(connection);
}

static void end_whole(Connection *connection) {
    if (connection->rest == 0)
        respond(connection, "200 OK", WHOLE);
    else
        append(&connection->out, WHOLE + connection->rest, sizeof WHOLE - 1 - connection->rest);
    end_answer(connection);
}

static void refuse(Connection *connection, long status) {
    char line[32], document[128];
    snprintf(line, sizeof line, "%ld Refused", status);
    snprintf(document, sizeof document, "{\"error\":{\"message\":\"refused, as it was asked for\",\"type\":\"refused\",\"code\":%ld}}", status);
    respond(connection, line, document);
}

static void answer_chat(Connection *connection, const char *body, size_t length) {
    stats.requests++;
    long status = number_after(body, length, "status=", 0), wait_us = number_after(body, length, "wait_us=", 0);
    if (status >= 400) {
        refuse(connection, status);
        return;
    }
    begin_answer(connection);
    connection->tag = number_after(body, length, "tag=", 0);
    connection->due_ns = wait_us > 0 ? now_ns() + (uint64_t)wait_us * 1000 : 0;
    if (says_true(body, length, "\"stream\""))
        begin_stream(connection, body, length);
    else
        begin_whole(connection, number_after(body, length, "half=", 0) != 0);
}

static void tell_departures(Connection *connection) {
    size_t size = departure_count * 48 + 3, length = 1;
    char *document = must(malloc(size));
    document[0] = '[';
    for (size_t i = 0; i < departure_count; i++)
        length += (size_t)sprintf(document + length, "%s[%ld,%llu]", i ? "," : "", departures[i].tag, (unsigned long long)departures[i].at_ns);
    strcpy(document + length, "]");
    respond(connection, "200 OK", document);
    free(document);
    departure_count = 0;
}

static void answer(Connection *connection, const char *head, const char *body, size_t length) {
    if (strncmp(head, "POST ", 5) == 0) {
        answer_chat(connection, body, length);
    } else if (strncmp(head, "GET /left ", 10) == 0) {
        tell_departures(connection);
    } else if (strncmp(head, "GET /stats ", 11) == 0) {
        char document[512];
        snprintf(document, sizeof document,
                 "{\"requests\":%ld,\"streams_started\":%ld,\"streams_finished\":%ld,\"closed_early\":%ld,\"connections\":%ld,\"open\":%ld,"
                 "\"running\":%ld,\"held_back\":%ld,\"tokens\":%ld}",
                 stats.requests, stats.streams_started, stats.streams_finished, stats.closed_early, stats.connections, stats.open, stats.running,
                 stats.held_back, stats.tokens);
        respond(connection, "200 OK", document);
    } else if (strncmp(head, "GET /v1/models ", 15) == 0) {
        respond(connection, "200 OK", "{\"object\":\"list\",\"data\":[{\"id\":\"bench\",\"object\":\"model\",\"created\":1700000000,\"owned_by\":\"bench\"}]}");
    } else if (strncmp(head, "GET /health ", 12) == 0) {
        respond(connection, "200 OK", "{}");
    } else {
        respond(connection, "404 Not Found", "{\"error\":{\"message\":\"the bench's upstream has no such route\",\"code\":404}}");
    }
}

/* Bytes of the body that this head announces; -1: none that we can read. */
static long body_length(const char *head) {
    if (strcasestr(head, "\r\ntransfer-encoding:")) return -1;
    const char *header = strcasestr(head, "\r\ncontent-length:");
    long length = header ? strtol(header + 17, NULL, 10) : 0;
    return length > MAX_BODY ? -1 : length;
}

/* Answer the whole requests that have come. False: this client cannot be served. */
static bool take_requests(Connection *connection) {
    Buffer *in = &connection->in;
    while (!connection->asked && in->length > 0) {
        char *blank = memmem(in->data, in->length, "\r\n\r\n", 4);
        if (blank == NULL) return in->length < MAX_HEAD;
        blank[2] = '\0'; /* ends the head as a text, its last line end included */
        long length = body_length(in->data);
        if (length < 0) {
            respond(connection, "411 Length Required", "{\"error\":{\"message\":\"send a Content-Length\",\"code\":411}}");
            flush(connection);
            return false;
        }
        size_t head_length = (size_t)(blank - in->data) + 4, whole = head_length + (size_t)length;
        if (in->length < whole) {
            blank[2] = '\r';
            return true;
        }
        answer(connection, in->data, in->data + head_length, (size_t)length);
        memmove(in->data, in->data + whole, in->length - whole);
        in->length -= whole;
    }
    return true;
}

/* --- connections ------------------------------------------------------------------------------------------------------------------ */

static void note_departure(long tag) {
    if (departure_count == departure_capacity) {
        departure_capacity = departure_capacity ? departure_capacity * 2 : 1024;
        departures = must(realloc(departures, departure_capacity * sizeof *departures));
    }
    departures[departure_count++] = (Departure){.tag = tag, .at_ns = now_ns()};
}

static void part_from(Connection *connection) {
    if (connection->asked || connection->written < connection->out.length) {
        stats.closed_early++;
        if (connection->tag != 0) note_departure(connection->tag);
    }
    stats.held_back -= connection->waits_for_room;
    end_answer(connection);
    unschedule(connection);
    stats.open--;
    close(connection->fd);
    free(connection->in.data);
    free(connection->out.data);
    free(connection);
}

/* Read all there is. False: the client has closed. */
static bool receive(Connection *connection) {
    static char data[READ_SIZE];
    for (;;) {
        ssize_t count = recv(connection->fd, data, sizeof data, 0);
        if (count > 0) append(&connection->in, data, (size_t)count);
        if (count == sizeof data || (count < 0 && errno == EINTR)) continue;
        return count > 0 || (count < 0 && errno == EAGAIN);
    }
}

/* Send what is pending; then go on with an unpaced stream or, where an answer is complete, with the next request. False: part from it. */
static bool go_on(Connection *connection) {
    for (;;) {
        if (!flush(connection)) return false;
        if (connection->waits_for_room) return true;
        if (connection->asked && (!connection->streaming || connection->place != 0)) return true; /* waits for its time */
        if (connection->streaming)
            fill(connection);
        else if (!take_requests(connection))
            return false;
        else if (connection->out.length == 0)
            return true;
    }
}

static void serve(Connection *connection, uint32_t events) {
    bool stays = !(events & EPOLLERR);
    if (stays && (events & (EPOLLIN | EPOLLRDHUP | EPOLLHUP))) stays = receive(connection) && take_requests(connection);
    if (!stays || !go_on(connection)) part_from(connection);
}

static void accept_all(int listener) {
    for (;;) {
        int fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC), yes = 1;
        if (fd < 0) return;
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes);
        Connection *connection = must(calloc(1, sizeof *connection));
        connection->fd = fd;
        struct epoll_event event = {.events = EPOLLIN | EPOLLRDHUP, .data.ptr = connection};
        epoll_ctl(poller, EPOLL_CTL_ADD, fd, &event);
        stats.connections++;
        stats.open++;
    }
}

static void emit_due(void) {
    uint64_t now = now_ns();
    while (heap_length > 0 && heap[1]->due_ns <= now) {
        Connection *connection = heap[1];
        if (connection->streaming)
            next_token(connection);
        else
            end_whole(connection);
        if (connection->streaming && connection->pace_ns != 0)
            schedule(connection);
        else
            unschedule(connection);
        if (!go_on(connection)) part_from(connection);
    }
    struct itimerspec next = {0};
    if (heap_length > 0) {
        next.it_value.tv_sec = (time_t)(heap[1]->due_ns / 1000000000u);
        next.it_value.tv_nsec = (long)(heap[1]->due_ns % 1000000000u);
    }
    timerfd_settime(timer, TFD_TIMER_ABSTIME, &next, NULL);
}

static int listen_anywhere(void) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t size = sizeof address;
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (listener < 0 || bind(listener, (struct sockaddr *)&address, size) < 0 || listen(listener, 4096) < 0) {
        perror("upstream: cannot listen");
        exit(1);
    }
    getsockname(listener, (struct sockaddr *)&address, &size);
    printf("port %d\n", ntohs(address.sin_port));
    fflush(stdout);
    return listener;
}

int main(void) {
    struct rlimit files;
    getrlimit(RLIMIT_NOFILE, &files);
    files.rlim_cur = files.rlim_max;
    setrlimit(RLIMIT_NOFILE, &files);
    poller = epoll_create1(EPOLL_CLOEXEC);
    timer = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC);
    int listener = listen_anywhere();
    /* Told apart from connections by addresses of their own. The timer is edge-triggered, so that it need not be read. */
    struct epoll_event on_accept = {.events = EPOLLIN, .data.ptr = &listener}, on_time = {.events = EPOLLIN | EPOLLET, .data.ptr = &timer};
    epoll_ctl(poller, EPOLL_CTL_ADD, listener, &on_accept);
    epoll_ctl(poller, EPOLL_CTL_ADD, timer, &on_time);
    for (;;) {
        struct epoll_event events[BATCH];
        int count = epoll_wait(poller, events, BATCH, -1);
        for (int i = 0; i < count; i++) {
            if (events[i].data.ptr == &listener)
                accept_all(listener);
            else if (events[i].data.ptr != &timer)
                serve(events[i].data.ptr, events[i].events);
        }
        emit_due(); /* after the batch: a connection that ends here must not be among the events still to come */
    }
}

/* The bench's load: asks for chat completions and times the answers to the nanosecond. One thread, epoll, HTTP/1.1 keep-alive.
 *
 *     load requests --port N --connections N --seconds N [--warm-s N]       one request after the other on each connection
 *     load streams  --port N --connections N --seconds N --pace-us N --tokens N [--repeat] [--ramp-ms N] [--grace-s N]
 *
 * Both: [--key KEY] [--model NAME]. `streams` opens one stream on each connection, evenly over --ramp-ms, and ends when all have ended or
 * --grace-s after the last token was due; with --repeat each connection opens streams one after the other for --seconds.
 * Prints one JSON object on one line; times in microseconds.
 *
 * Rule: a token's delay is the time from where the upstream made it, which is in its text, to where the bytes that hold its end were
 * read. A gap's growth is the difference of the delays of neighbours, counted as 0 where a token caught up.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <ctype.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { BATCH = 512, READ_SIZE = 65536, MAX_HEAD = 16384, MAX_LINE = 65536 };

static struct {
    bool streams, repeat;
    int port, connections;
    double seconds, warm_s, grace_s;
    long pace_us, tokens, ramp_ms;
    const char *key, *model;
} options = {.connections = 1, .seconds = 1, .grace_s = 5, .tokens = 16, .ramp_ms = 1000, .key = "none", .model = "bench"};

typedef enum { IDLE, HEAD, LENGTH, CHUNK_SIZE, CHUNK_DATA, CHUNK_END, TRAILER, TO_THE_END } State;

typedef struct {
    int fd;
    State state;
    uint64_t started_ns;
    char head[MAX_HEAD];
    size_t head_length, line_length;
    uint64_t remaining; /* of the body or the chunk */
    int status;
    bool close_after, done; /* done: [DONE] has come */
    long next;              /* sequence number of the token to come */
    bool has_delay;
    int64_t delay_ns; /* of the token before */
    char line[MAX_LINE];
} Connection;

typedef struct {
    int64_t *values;
    size_t length, capacity;
} Samples;

static struct {
    long begun, finished, failed, tokens, lost, reordered, late, reconnects;
    char problem[256];
} counts;

static Samples answer_times, first_times, delays, growths;
static Connection *connections;
static int poller, unfinished;
static char *request;
static size_t request_length;
static uint64_t start_ns, measure_from_ns, end_ns;

static uint64_t now_ns(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (uint64_t)time.tv_sec * 1000000000u + (uint64_t)time.tv_nsec;
}

static void give_up(const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    fputs("load: ", stderr);
    vfprintf(stderr, format, arguments);
    fputs("\n", stderr);
    exit(2);
}

static void sample(Samples *samples, int64_t value) {
    if (samples->length == samples->capacity) {
        samples->capacity = samples->capacity ? samples->capacity * 2 : 65536;
        samples->values = realloc(samples->values, samples->capacity * sizeof *samples->values);
        if (samples->values == NULL) give_up("out of memory");
    }
    samples->values[samples->length++] = value;
}

/* The first problem is kept, fit to stand in a JSON string. */
static void note_problem(const char *text, size_t length) {
    if (counts.problem[0]) return;
    size_t count = 0;
    for (size_t i = 0; i < length && count < sizeof counts.problem - 1; i++) {
        char character = text[i];
        counts.problem[count++] = (char)(character == '"' || character == '\\' ? '\'' : isprint((unsigned char)character) ? character : ' ');
    }
    counts.problem[count] = '\0';
}

/* --- one exchange ----------------------------------------------------------------------------------------------------------------- */

static void connect_to_gateway(Connection *connection) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)options.port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), yes = 1;
    if (fd < 0 || connect(fd, (struct sockaddr *)&address, sizeof address) < 0) give_up("cannot connect to port %d: %s", options.port, strerror(errno));
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes);
    connection->fd = fd;
    struct epoll_event event = {.events = EPOLLIN | EPOLLRDHUP, .data.ptr = connection};
    epoll_ctl(poller, EPOLL_CTL_ADD, fd, &event);
}

static void begin(Connection *connection) {
    if (connection->fd < 0) connect_to_gateway(connection);
    connection->state = HEAD;
    connection->head_length = connection->line_length = 0;
    connection->done = connection->has_delay = false;
    connection->next = 0;
    connection->started_ns = now_ns();
    counts.begun++;
    /* Some hundred bytes into an empty buffer: this neither blocks nor stops half-way. */
    if (send(connection->fd, request, request_length, MSG_NOSIGNAL) != (ssize_t)request_length) note_problem("could not send the request", 26);
}

static void end_exchange(Connection *connection, bool good, uint64_t now) {
    bool counted = options.streams || connection->started_ns >= measure_from_ns;
    if (good && !options.streams && counted && now < end_ns) sample(&answer_times, (int64_t)(now - connection->started_ns));
    if (options.streams) {
        good = good && connection->done;
        counts.lost += options.tokens - connection->next;
        if (!connection->done) note_problem("a stream ended without [DONE]", 29);
    }
    counts.finished += good && counted;
    counts.failed += !good;
    connection->state = IDLE;
    bool again = now < end_ns && (!options.streams || options.repeat) && counts.failed < 1000;
    if (!again) unfinished--;
    if (connection->close_after || !good) {
        close(connection->fd);
        connection->fd = -1;
        counts.reconnects += again;
    }
    if (again) begin(connection);
}

/* --- server-sent events ----------------------------------------------------------------------------------------------------------- */

static void take_token(Connection *connection, long sequence, uint64_t sent_ns, uint64_t now) {
    int64_t delay = (int64_t)(now - sent_ns);
    counts.tokens++;
    if (sequence == 0) sample(&first_times, (int64_t)(now - connection->started_ns));
    sample(&delays, delay);
    if (connection->has_delay) sample(&growths, delay > connection->delay_ns ? delay - connection->delay_ns : 0);
    connection->has_delay = true;
    connection->delay_ns = delay;
    if (sequence < connection->next) { /* it was counted as lost when a later one came */
        counts.reordered++;
        counts.lost--;
        return;
    }
    counts.lost += sequence - connection->next;
    connection->next = sequence + 1;
}

static void take_line(Connection *connection, uint64_t now) {
    static const char key[] = "\"content\":";
    char *line = connection->line;
    line[connection->line_length] = '\0';
    if (strncmp(line, "data:", 5) != 0) return;
    if (strstr(line, "[DONE]")) {
        connection->done = true;
        return;
    }
    char *text = strstr(line, key);
    if (text == NULL) {
        if (strstr(line, "\"error\"")) note_problem(line, connection->line_length);
        return;
    }
    text += sizeof key - 1;
    while (*text == ' ') text++;
    char *colon = NULL;
    long sequence = *text == '"' ? strtol(text + 1, &colon, 10) : 0;
    if (colon != NULL && colon != text + 1 && *colon == ':') take_token(connection, sequence, strtoull(colon + 1, NULL, 10), now);
}

static void take_body(Connection *connection, const char *data, size_t length, uint64_t now) {
    if (connection->status != 200) {
        note_problem(data, length);
        return;
    }
    if (!options.streams) return;
    while (length > 0) {
        const char *newline = memchr(data, '\n', length);
        size_t count = newline ? (size_t)(newline - data) : length;
        if (connection->line_length + count >= MAX_LINE) give_up("a line of a stream is longer than %d bytes", MAX_LINE);
        memcpy(connection->line + connection->line_length, data, count);
        connection->line_length += count;
        if (newline == NULL) return;
        take_line(connection, now);
        connection->line_length = 0;
        data += count + 1;
        length -= count + 1;
    }
}

/* --- HTTP ------------------------------------------------------------------------------------------------------------------------- */

static void take_head(Connection *connection) {
    char *head = connection->head;
    connection->status = (int)strtol(head + 9, NULL, 10);
    connection->close_after = strcasestr(head, "\r\nconnection: close") != NULL;
    char *length = strcasestr(head, "\r\ncontent-length:");
    if (strcasestr(head, "\r\ntransfer-encoding: chunked"))
        connection->state = CHUNK_SIZE;
    else if (length != NULL) {
        connection->state = LENGTH;
        connection->remaining = strtoull(length + 17, NULL, 10);
    } else {
        connection->state = TO_THE_END;
        connection->close_after = true;
    }
    connection->line_length = 0;
    if (connection->state == CHUNK_SIZE) connection->remaining = 0;
}

/* One character of a chunk's size line; the number grows in remaining. */
static void take_size(Connection *connection, char character) {
    if (character == '\n')
        connection->state = connection->remaining ? CHUNK_DATA : TRAILER;
    else if (isxdigit((unsigned char)character))
        connection->remaining = connection->remaining * 16 + (uint64_t)(isdigit((unsigned char)character) ? character - '0' : (character | 32) - 'a' + 10);
    else if (character != '\r')
        give_up("a chunk's size holds %d, which is no hexadecimal digit", character);
}

/* Take what was read. The exchange has ended where the state is IDLE, or HEAD of the next one. */
static void feed(Connection *connection, const char *data, size_t length, uint64_t now) {
    while (length > 0 && connection->state != IDLE) {
        size_t count = 1;
        switch (connection->state) {
        case HEAD:
            if (connection->head_length + 1 >= MAX_HEAD) give_up("the head of an answer is longer than %d bytes", MAX_HEAD);
            connection->head[connection->head_length++] = *data;
            if (*data == '\n' && connection->head_length >= 4 && memcmp(connection->head + connection->head_length - 4, "\r\n\r\n", 4) == 0) {
                connection->head[connection->head_length] = '\0';
                take_head(connection);
                if (connection->state == LENGTH && connection->remaining == 0) end_exchange(connection, connection->status == 200, now);
            }
            break;
        case LENGTH:
        case CHUNK_DATA:
            count = length < connection->remaining ? length : (size_t)connection->remaining;
            take_body(connection, data, count, now);
            connection->remaining -= count;
            if (connection->remaining > 0) break;
            if (connection->state == CHUNK_DATA)
                connection->state = CHUNK_END;
            else
                end_exchange(connection, connection->status == 200, now);
            break;
        case TO_THE_END:
            count = length;
            take_body(connection, data, count, now);
            break;
        case CHUNK_SIZE:
            take_size(connection, *data);
            break;
        case CHUNK_END:
            if (*data == '\n') connection->state = CHUNK_SIZE;
            break;
        case TRAILER: /* none is expected: the blank line ends the answer */
            if (*data == '\n') end_exchange(connection, connection->status == 200, now);
            break;
        case IDLE:
            break;
        }
        data += count;
        length -= count;
    }
}

static void receive(Connection *connection) {
    static char data[READ_SIZE];
    ssize_t count = recv(connection->fd, data, sizeof data, MSG_DONTWAIT);
    uint64_t now = now_ns();
    if (count > 0) {
        feed(connection, data, (size_t)count, now);
        return;
    }
    if (count < 0 && (errno == EAGAIN || errno == EINTR)) return;
    connection->close_after = true;
    if (connection->state == IDLE) { /* nothing is asked on it any more */
        close(connection->fd);
        connection->fd = -1;
        return;
    }
    bool good = connection->state == TO_THE_END && connection->status == 200;
    if (!good) note_problem("a connection was closed in the middle of an answer", 50);
    end_exchange(connection, good, now);
}

/* --- the run ---------------------------------------------------------------------------------------------------------------------- */

static void make_request(void) {
    char *body = NULL;
    int length;
    if (options.streams)
        length = asprintf(&body,
                          "{\"model\":\"%s\",\"stream\":true,\"max_tokens\":%ld,\"messages\":[{\"role\":\"user\",\"content\":\"pace_us=%ld tokens=%ld\"}]}",
                          options.model, options.tokens, options.pace_us, options.tokens);
    else
        length = asprintf(&body, "{\"model\":\"%s\",\"messages\":[{\"role\":\"user\",\"content\":\"Say something short.\"}]}", options.model);
    int whole = asprintf(&request,
                         "POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1:%d\r\ncontent-type: application/json\r\nauthorization: Bearer %s\r\n"
                         "content-length: %d\r\n\r\n%s",
                         options.port, options.key, length, body);
    if (length < 0 || whole < 0) give_up("out of memory");
    request_length = (size_t)whole;
    free(body);
}

static int by_value(const void *left, const void *right) {
    int64_t a = *(const int64_t *)left, b = *(const int64_t *)right;
    return (a > b) - (a < b);
}

static void print_times(const char *name, Samples *samples) {
    qsort(samples->values, samples->length, sizeof *samples->values, by_value);
    printf(",\"%s\":", name);
    if (samples->length == 0) {
        printf("null");
        return;
    }
    const double shares[] = {0.5, 0.99, 1.0};
    double us[3];
    for (int i = 0; i < 3; i++) us[i] = (double)samples->values[(size_t)(shares[i] * (double)(samples->length - 1) + 0.5)] / 1000;
    printf("{\"count\":%zu,\"p50_us\":%.1f,\"p99_us\":%.1f,\"max_us\":%.1f}", samples->length, us[0], us[1], us[2]);
}

static void report(uint64_t now) {
    double measured = (double)((options.streams ? now : end_ns) - measure_from_ns) / 1e9;
    printf("{\"mode\":\"%s\",\"connections\":%d,\"seconds\":%.3f,\"begun\":%ld,\"finished\":%ld,\"failed\":%ld,\"reconnects\":%ld,\"problem\":\"%s\"",
           options.streams ? "streams" : "requests", options.connections, measured, counts.begun, counts.finished, counts.failed, counts.reconnects,
           counts.problem);
    if (options.streams) {
        printf(",\"tokens\":%ld,\"lost\":%ld,\"reordered\":%ld,\"late\":%ld", counts.tokens, counts.lost, counts.reordered, counts.late);
        print_times("first", &first_times);
        print_times("delay", &delays);
        print_times("gap", &growths);
    } else {
        printf(",\"per_s\":%.1f", (double)answer_times.length / measured);
        print_times("answer", &answer_times);
    }
    printf("}\n");
}

static int run(void) {
    poller = epoll_create1(EPOLL_CLOEXEC);
    connections = calloc((size_t)options.connections, sizeof *connections);
    if (connections == NULL) give_up("out of memory");
    for (int i = 0; i < options.connections; i++) connections[i].fd = -1;
    start_ns = now_ns();
    measure_from_ns = start_ns + (uint64_t)(options.warm_s * 1e9);
    end_ns = measure_from_ns + (uint64_t)(options.seconds * 1e9);
    uint64_t ramp_ns = options.streams ? (uint64_t)options.ramp_ms * 1000000u : 0;
    uint64_t streams_last_ns = options.repeat ? (uint64_t)(options.seconds * 1e9) : ramp_ns + (uint64_t)(options.tokens * options.pace_us) * 1000u;
    uint64_t stop_ns = (options.streams ? start_ns + streams_last_ns : end_ns) + (uint64_t)(options.grace_s * 1e9);
    int opened = 0;
    unfinished = options.connections;
    uint64_t now = start_ns;
    while (unfinished > 0 && now < stop_ns) {
        for (; opened < options.connections && now >= start_ns + ramp_ns * (uint64_t)opened / (uint64_t)options.connections; opened++)
            begin(&connections[opened]);
        struct epoll_event events[BATCH];
        int count = epoll_wait(poller, events, BATCH, opened < options.connections ? 1 : 100);
        for (int i = 0; i < count; i++) receive(events[i].data.ptr);
        now = now_ns();
    }
    for (int i = 0; i < options.connections; i++)
        if (connections[i].state != IDLE) counts.late += options.tokens - connections[i].next;
    report(now);
    return 0;
}

int main(int count, char **words) {
    prctl(PR_SET_PDEATHSIG, SIGKILL); /* nobody is left to read what it would print */
    if (count < 2) give_up("say `requests` or `streams`");
    options.streams = strcmp(words[1], "streams") == 0;
    if (!options.streams && strcmp(words[1], "requests") != 0) give_up("no such mode: %s", words[1]);
    for (int i = 2; i < count; i++) {
        const char *name = words[i];
        if (strcmp(name, "--repeat") == 0) {
            options.repeat = true;
            continue;
        }
        if (i + 1 == count) give_up("%s needs a value", name);
        const char *value = words[++i];
        if (strcmp(name, "--port") == 0) options.port = atoi(value);
        else if (strcmp(name, "--connections") == 0) options.connections = atoi(value);
        else if (strcmp(name, "--seconds") == 0) options.seconds = atof(value);
        else if (strcmp(name, "--warm-s") == 0) options.warm_s = atof(value);
        else if (strcmp(name, "--grace-s") == 0) options.grace_s = atof(value);
        else if (strcmp(name, "--pace-us") == 0) options.pace_us = atol(value);
        else if (strcmp(name, "--tokens") == 0) options.tokens = atol(value);
        else if (strcmp(name, "--ramp-ms") == 0) options.ramp_ms = atol(value);
        else if (strcmp(name, "--key") == 0) options.key = value;
        else if (strcmp(name, "--model") == 0) options.model = value;
        else give_up("no such option: %s", name);
    }
    if (options.port <= 0 || options.connections <= 0 || options.tokens <= 0) give_up("--port, --connections and --tokens must be greater than 0");
    struct rlimit files;
    getrlimit(RLIMIT_NOFILE, &files);
    files.rlim_cur = files.rlim_max;
    setrlimit(RLIMIT_NOFILE, &files);
    make_request();
    return run();
}

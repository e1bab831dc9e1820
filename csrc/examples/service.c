/*
 * The inside of a storage service: four threads place, lock, verify and rewrite objects.
 *
 *     cc -O2 service.c $(pkg-config --cflags --libs ringhold) -o service && ./service 100000
 *
 * Keys are placed in batches; an object is read under a shared and rewritten under an exclusive
 * lock; its checksum is computed while it is copied in and verified at every access. A thread
 * that must wait sleeps in its own mailbox, and whoever releases the lock puts the token there.
 *
 * The work is bounded (operations are rounded up to batches) and its results are checked: a
 * damaged object, a token that does not grow, a rewrite that got lost or a lock that remains
 * makes the program say so and return 1.
 */
#define _POSIX_C_SOURCE 200809L

#include <inttypes.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <ringhold/ringhold.h>

enum { THREADS = 4, NODES = 12, OBJECTS = 64, OBJECT_BYTES = 4096, BATCH = 32, NAME_BYTES = 16 };

struct object {
    char name[NAME_BYTES];
    uint8_t data[OBJECT_BYTES];
    uint64_t checksum;
    uint64_t rewrites;
    uint64_t last_token;
};

struct mailbox {
    pthread_mutex_t mutex;
    pthread_cond_t changed;
    uint64_t token; /* of the grant that the thread waits for; 0: none yet */
};

struct service {
    rh_ring *ring;
    rh_lock_table *locks;
    struct object objects[OBJECTS];
    struct mailbox mailboxes[THREADS];
};

struct worker {
    struct service *service;
    rh_lock_grants *grants;
    uint64_t owner; /* its number, from 1 */
    uint64_t operations;
    uint64_t state; /* of its random numbers */
    uint64_t placed[NODES];
    uint64_t rewrites;
    uint64_t waits;
    const char *failure;
};

/* Marsaglia, "Xorshift RNGs", 2003. */
static uint64_t next_number(struct worker *w)
{
    w->state ^= w->state << 13;
    w->state ^= w->state >> 7;
    w->state ^= w->state << 17;
    return w->state;
}

static bool lock(struct worker *w, const struct object *object, rh_lock_mode mode, uint64_t *token)
{
    struct mailbox *mailbox = &w->service->mailboxes[w->owner - 1];

    if (rh_lock_request(w->service->locks, object->name, strlen(object->name), w->owner, mode,
                        token) != RH_OK) {
        return false;
    }
    if (*token == 0) {
        w->waits++;
        pthread_mutex_lock(&mailbox->mutex);
        while (mailbox->token == 0) {
            pthread_cond_wait(&mailbox->changed, &mailbox->mutex);
        }
        *token = mailbox->token;
        mailbox->token = 0;
        pthread_mutex_unlock(&mailbox->mutex);
    }
    return true;
}

static bool unlock(struct worker *w, const struct object *object)
{
    const rh_lock_grant *grants = NULL;
    size_t count = 0;

    if (rh_lock_release(w->service->locks, object->name, strlen(object->name), w->owner,
                        w->grants) != RH_OK ||
        rh_lock_grants_read(w->grants, &grants, &count) != RH_OK) {
        return false;
    }
    for (size_t i = 0; i < count; i++) {
        struct mailbox *mailbox = &w->service->mailboxes[grants[i].owner - 1];

        pthread_mutex_lock(&mailbox->mutex);
        mailbox->token = grants[i].token;
        pthread_cond_signal(&mailbox->changed);
        pthread_mutex_unlock(&mailbox->mutex);
    }
    return true;
}

static const char *rewrite(struct worker *w, struct object *object, uint64_t token)
{
    uint8_t fresh[OBJECT_BYTES];

    if (token <= object->last_token) {
        return "a token did not grow";
    }
    memset(fresh, (int)(token & 255), sizeof fresh);
    memcpy(fresh, &token, sizeof token);
    if (rh_copy_checksum_blocks(object->data, fresh, sizeof fresh, sizeof fresh,
                                &object->checksum) != RH_OK) {
        return "a copy failed";
    }
    object->last_token = token;
    object->rewrites++;
    w->rewrites++;
    return NULL;
}

/* One access to an object; says what went wrong, NULL for nothing. */
static const char *use(struct worker *w, struct object *object, bool writes)
{
    const char *failure = NULL;
    uint64_t token = 0, sum = 0;

    if (!lock(w, object, writes ? RH_LOCK_EXCLUSIVE : RH_LOCK_SHARED, &token)) {
        return "a lock was refused";
    }
    if (rh_checksum(object->data, OBJECT_BYTES, &sum) != RH_OK || sum != object->checksum) {
        failure = "an object is damaged";
    } else if (writes) {
        failure = rewrite(w, object, token);
    }
    if (!unlock(w, object)) {
        return "a lock was not released";
    }
    return failure;
}

static void *work(void *argument)
{
    struct worker *w = argument;

    for (uint64_t done = 0; done < w->operations && w->failure == NULL; done += BATCH) {
        struct object *chosen[BATCH];
        const void *keys[BATCH];
        size_t key_bytes[BATCH];
        uint32_t nodes[BATCH];

        for (size_t i = 0; i < BATCH; i++) {
            chosen[i] = &w->service->objects[next_number(w) % OBJECTS];
            keys[i] = chosen[i]->name;
            key_bytes[i] = strlen(chosen[i]->name);
        }
        if (rh_ring_lookup_keys(w->service->ring, keys, key_bytes, BATCH, nodes) != RH_OK) {
            w->failure = "a key has no node";
        }
        for (size_t i = 0; i < BATCH && w->failure == NULL; i++) {
            w->placed[nodes[i]]++;
            w->failure = use(w, chosen[i], next_number(w) % 4 == 0);
        }
    }
    return NULL;
}

static bool open_service(struct service *s)
{
    char names[NODES][NAME_BYTES];
    rh_node nodes[NODES];

    memset(nodes, 0, sizeof nodes);
    for (int i = 0; i < NODES; i++) {
        snprintf(names[i], NAME_BYTES, "node-%d", i);
        nodes[i].name = names[i];
        nodes[i].name_bytes = strlen(names[i]);
        nodes[i].weight = 1;
    }
    for (int i = 0; i < OBJECTS; i++) {
        snprintf(s->objects[i].name, NAME_BYTES, "object-%d", i);
        if (rh_checksum(s->objects[i].data, OBJECT_BYTES, &s->objects[i].checksum) != RH_OK) {
            return false;
        }
    }
    for (int i = 0; i < THREADS; i++) {
        if (pthread_mutex_init(&s->mailboxes[i].mutex, NULL) != 0 ||
            pthread_cond_init(&s->mailboxes[i].changed, NULL) != 0) {
            return false;
        }
    }
    return rh_ring_new(nodes, NODES, NULL, &s->ring) == RH_OK &&
           rh_lock_table_new(NULL, &s->locks) == RH_OK;
}

/* Runs all workers to their end. A thread that cannot be started is a failure of its worker. */
static void run(struct service *s, struct worker workers[THREADS], uint64_t operations)
{
    pthread_t threads[THREADS];
    bool started[THREADS];

    for (int i = 0; i < THREADS; i++) {
        workers[i] = (struct worker){.service = s,
                                     .owner = (uint64_t)i + 1,
                                     .operations = operations / THREADS,
                                     .state = 88172645463325252u + (uint64_t)i};
        started[i] = rh_lock_grants_new(&workers[i].grants) == RH_OK &&
                     pthread_create(&threads[i], NULL, work, &workers[i]) == 0;
        if (!started[i]) {
            workers[i].failure = "a thread was not started";
        }
    }
    for (int i = 0; i < THREADS; i++) {
        if (started[i]) {
            pthread_join(threads[i], NULL);
        }
        rh_lock_grants_free(workers[i].grants);
    }
}

static const char *check(const struct service *s, const struct worker workers[THREADS])
{
    uint64_t made = 0, found = 0;
    size_t held = 0;

    for (int i = 0; i < THREADS; i++) {
        if (workers[i].failure != NULL) {
            return workers[i].failure;
        }
        made += workers[i].rewrites;
    }
    for (int i = 0; i < OBJECTS; i++) {
        found += s->objects[i].rewrites;
    }
    if (made != found) {
        return "a rewrite got lost";
    }
    if (rh_lock_table_size(s->locks, &held) != RH_OK || held != 0) {
        return "a lock remains";
    }
    return NULL;
}

static void print_summary(const struct worker workers[THREADS], double seconds)
{
    uint64_t operations = 0, rewrites = 0, waits = 0;
    int used = 0;

    for (int n = 0; n < NODES; n++) {
        uint64_t placed = 0;

        for (int i = 0; i < THREADS; i++) {
            placed += workers[i].placed[n];
        }
        operations += placed;
        used += placed > 0;
    }
    for (int i = 0; i < THREADS; i++) {
        rewrites += workers[i].rewrites;
        waits += workers[i].waits;
    }
    printf("operations %" PRIu64 "\nrewrites %" PRIu64 "\nwaits %" PRIu64 "\nnodes used %d of %d\n"
           "operations per second %.0f\n",
           operations, rewrites, waits, used, NODES, (double)operations / seconds);
}

int main(int count, char **arguments)
{
    static struct service service;
    struct worker workers[THREADS];
    struct timespec begin, end;
    uint64_t operations = count > 1 ? strtoull(arguments[1], NULL, 10) : 1000000;
    const char *failure = "the service could not be set up";

    if (open_service(&service)) {
        clock_gettime(CLOCK_MONOTONIC, &begin);
        run(&service, workers, operations);
        clock_gettime(CLOCK_MONOTONIC, &end);
        failure = check(&service, workers);
    }
    if (failure == NULL) {
        print_summary(workers, (double)(end.tv_sec - begin.tv_sec) +
                                   1e-9 * (double)(end.tv_nsec - begin.tv_nsec));
    } else {
        fprintf(stderr, "service: %s\n", failure);
    }
    rh_lock_table_free(service.locks);
    rh_ring_free(service.ring);
    return failure == NULL ? 0 : 1;
}

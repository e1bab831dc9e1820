/*
 * The lock table in the dumbest form: every question is answered by looking at everything. What
 * test_lock_table_model.c compares the real one with.
 */
#ifndef RINGHOLD_TESTS_LOCK_TABLE_MODEL_H
#define RINGHOLD_TESTS_LOCK_TABLE_MODEL_H

#include <ringhold/lock_table.h>

#include "rh_test.h"

enum { NAMES = 7, OWNERS = 12, GRANTS_MAX = NAMES * OWNERS };

struct wish {
    uint64_t owner;
    rh_lock_mode mode;
    bool upgrade;
};

/* Owners are numbered from 1; index 0 of what is by owner is not used. */
struct model {
    struct {
        rh_lock_mode mode; /* RH_LOCK_NONE: not held */
        uint64_t count;
        uint64_t token;
    } holds[NAMES][OWNERS + 1];
    struct wish queues[NAMES][OWNERS];
    size_t waiting[NAMES];
    bool limited[OWNERS + 1];
    int64_t deadlines[OWNERS + 1];
};

struct model_grant {
    int name;
    uint64_t owner;
    rh_lock_mode mode;
};

struct model_grants {
    struct model_grant items[GRANTS_MAX];
    size_t count;
};

/* As the table of the documentation says it, row by row: IS IX S U SIX X. */
static const char *const model_compatible[] = {"",       "yyyyyn", "yynnnn", "ynyynn",
                                               "ynynnn", "ynnnnn", "nnnnnn"};

static inline bool model_excludes(rh_lock_mode a, rh_lock_mode b)
{
    return a != RH_LOCK_NONE && b != RH_LOCK_NONE && model_compatible[a][b - 1] == 'n';
}

/* Covers: lets others have no more. U counts as less than SIX. */
static inline bool model_covers(rh_lock_mode a, rh_lock_mode b)
{
    static const char *const covered[] = {"",       "ynnnnn", "yynnnn", "ynynnn",
                                          "ynyynn", "yyyyyn", "yyyyyy"};

    return covered[a][b - 1] == 'y';
}

static inline rh_lock_mode model_both(rh_lock_mode a, rh_lock_mode b)
{
    for (int mode = RH_LOCK_INTENT_SHARED; mode < RH_LOCK_EXCLUSIVE; mode++) {
        if (model_covers((rh_lock_mode)mode, a) && model_covers((rh_lock_mode)mode, b)) {
            return (rh_lock_mode)mode;
        }
    }
    return RH_LOCK_EXCLUSIVE;
}

static inline bool model_waits(const struct model *model, uint64_t owner, int *name, size_t *place)
{
    for (*name = 0; *name < NAMES; ++*name) {
        for (*place = 0; *place < model->waiting[*name]; ++*place) {
            if (model->queues[*name][*place].owner == owner) {
                return true;
            }
        }
    }
    return false;
}

/* Whether the wish, with `ahead` waiters in front of it, waits for `other`. */
static inline bool model_blocks(const struct model *model, int name, const struct wish *wish,
                                size_t ahead, uint64_t other)
{
    bool blocks =
        other != wish->owner && model_excludes(wish->mode, model->holds[name][other].mode);

    for (size_t i = 0; i < ahead; i++) {
        blocks = blocks || (model->queues[name][i].owner == other &&
                            model_excludes(wish->mode, model->queues[name][i].mode));
    }
    return blocks;
}

static inline bool model_blocked(const struct model *model, int name, const struct wish *wish,
                                 size_t ahead)
{
    for (uint64_t other = 1; other <= OWNERS; other++) {
        if (model_blocks(model, name, wish, ahead, other)) {
            return true;
        }
    }
    return false;
}

static inline bool model_reaches(const struct model *model, uint64_t from, uint64_t to,
                                 bool *visited)
{
    int name;
    size_t place;

    if (visited[from] || !model_waits(model, from, &name, &place)) {
        return false;
    }
    visited[from] = true;
    for (uint64_t other = 1; other <= OWNERS; other++) {
        if (model_blocks(model, name, &model->queues[name][place], place, other) &&
            (other == to || model_reaches(model, other, to, visited))) {
            return true;
        }
    }
    return false;
}

static inline size_t model_place(const struct model *model, int name, bool upgrade)
{
    size_t place = 0;

    while (place < model->waiting[name] && (!upgrade || model->queues[name][place].upgrade)) {
        place++;
    }
    return place;
}

/* RH_OK, RH_CONFLICT; `token` is for a new grant. Fills in `wish` for a request that conflicts. */
static inline rh_status model_try(struct model *model, int name, uint64_t owner, rh_lock_mode mode,
                                  struct wish *wish)
{
    rh_lock_mode held = model->holds[name][owner].mode;
    size_t place, ahead;
    int where;

    *wish = (struct wish){owner, held == RH_LOCK_NONE ? mode : model_both(held, mode),
                          held != RH_LOCK_NONE};
    if (held == wish->mode) {
        return RH_OK;
    }
    ahead = model_place(model, name, wish->upgrade);
    if (model_waits(model, owner, &where, &place)) {
        ahead = model->waiting[name];
        if (where == name) {
            return RH_CONFLICT;
        }
    }
    return model_blocked(model, name, wish, ahead) ? RH_CONFLICT : RH_OK;
}

static inline void model_take(struct model *model, int name, const struct wish *wish,
                              uint64_t token)
{
    model->holds[name][wish->owner].mode = wish->mode;
    model->holds[name][wish->owner].token = token;
    model->holds[name][wish->owner].count++;
}

static inline void model_unqueue(struct model *model, int name, size_t place)
{
    struct wish *queue = model->queues[name];

    memmove(queue + place, queue + place + 1, (--model->waiting[name] - place) * sizeof *queue);
}

static inline rh_status model_enqueue(struct model *model, int name, const struct wish *wish)
{
    size_t place = model_place(model, name, wish->upgrade);
    struct wish *queue = model->queues[name];
    bool visited[OWNERS + 1] = {false};

    memmove(queue + place + 1, queue + place, (model->waiting[name]++ - place) * sizeof *queue);
    queue[place] = *wish;
    if (!model_reaches(model, wish->owner, wish->owner, visited)) {
        return RH_OK;
    }
    model_unqueue(model, name, place);
    return RH_DEADLOCK;
}

static inline void model_serve(struct model *model, int name, struct model_grants *grants)
{
    for (size_t place = 0; place < model->waiting[name];) {
        struct wish wish = model->queues[name][place];

        if (model_blocked(model, name, &wish, place)) {
            place++;
            continue;
        }
        model_unqueue(model, name, place);
        model_take(model, name, &wish, 0);
        grants->items[grants->count++] = (struct model_grant){name, wish.owner, wish.mode};
    }
}

static inline void model_drop(struct model *model, uint64_t owner)
{
    int where;
    size_t place;

    for (int name = 0; name < NAMES; name++) {
        memset(&model->holds[name][owner], 0, sizeof model->holds[name][owner]);
    }
    if (model_waits(model, owner, &where, &place)) {
        model_unqueue(model, where, place);
    }
    model->limited[owner] = false;
}

static inline bool model_idle(const struct model *model, uint64_t owner)
{
    int where;
    size_t place;
    bool idle = !model_waits(model, owner, &where, &place);

    for (int name = 0; name < NAMES; name++) {
        idle = idle && model->holds[name][owner].mode == RH_LOCK_NONE;
    }
    return idle;
}

#endif

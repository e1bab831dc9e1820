/*
 * Goal: whatever is called in whatever order, holders go together, nobody waits without reason,
 * nobody waits in a circle, tokens grow, and a table whose owners are gone is empty.
 * Method: the input is read as calls on a few names by a few owners; after each, the whole table
 * is asked for and held against the rules of the header.
 */
#include <ringhold/lock_table.h>

#include "fuzz.h"

enum { NAMES = 4, OWNERS = 6, MODES = 6, CALLS_MAX = 400 };

static const char *const names[NAMES] = {"a", "b", "c", "d"};

/* Row and column in the order of rh_lock_mode, from intent shared on. */
static const bool compatible[MODES][MODES] = {
    {true, true, true, true, true, false},     {true, true, false, false, false, false},
    {true, false, true, true, false, false},   {true, false, true, false, false, false},
    {true, false, false, false, false, false}, {false, false, false, false, false, false},
};

struct name_state {
    rh_lock_party holders[OWNERS];
    rh_lock_party waiters[OWNERS];
    size_t held;
    size_t awaited;
};

struct state {
    struct name_state names[NAMES];
};

struct run {
    struct fuzz_input input;
    rh_lock_table *table;
    rh_lock_grants *grants;
    struct state before;
    uint64_t last_token;
    int64_t now_ns;
};

static bool together(rh_lock_mode a, rh_lock_mode b)
{
    return compatible[a - RH_LOCK_INTENT_SHARED][b - RH_LOCK_INTENT_SHARED];
}

static const rh_lock_party *party_of(const rh_lock_party *parties, size_t count, uint64_t owner)
{
    for (size_t i = 0; i < count; i++) {
        if (parties[i].owner == owner) {
            return &parties[i];
        }
    }
    return NULL;
}

static void read_parties(rh_lock_party *out, size_t *count, rh_lock_party *found,
                         size_t found_count)
{
    PROMISE(found_count <= OWNERS);
    for (size_t i = 0; i < found_count; i++) {
        PROMISE(found[i].mode >= RH_LOCK_INTENT_SHARED && found[i].mode <= RH_LOCK_EXCLUSIVE);
        PROMISE(party_of(out, i, found[i].owner) == NULL);
        /* By members: states are compared byte by byte, and padding is nobody's promise. */
        out[i].owner = found[i].owner;
        out[i].mode = found[i].mode;
    }
    *count = found_count;
    rh_free(found);
}

static void read_state(rh_lock_table *table, struct state *state)
{
    size_t used = 0, size = SIZE_MAX;

    memset(state, 0, sizeof *state);
    for (size_t i = 0; i < NAMES; i++) {
        struct name_state *name = &state->names[i];
        rh_lock_party *found = NULL;
        size_t count = 0;

        PROMISE(rh_lock_get_holders(table, names[i], 1, &found, &count) == RH_OK);
        read_parties(name->holders, &name->held, found, count);
        found = NULL;
        PROMISE(rh_lock_get_waiters(table, names[i], 1, &found, &count) == RH_OK);
        read_parties(name->waiters, &name->awaited, found, count);
        used += name->held + name->awaited > 0;
        for (uint64_t owner = 1; owner <= OWNERS; owner++) {
            const rh_lock_party *party = party_of(name->holders, name->held, owner);
            rh_lock_mode mode = RH_LOCK_EXCLUSIVE;

            PROMISE(rh_lock_get_mode(table, names[i], 1, owner, &mode) == RH_OK);
            PROMISE(mode == (party ? party->mode : RH_LOCK_NONE));
        }
    }
    PROMISE(rh_lock_table_size(table, &size) == RH_OK && size == used);
}

/* Whether waiter `index` of a name waits for `other`, who holds it or waits before. */
static bool waits_for(const struct name_state *name, size_t index, uint64_t other)
{
    const rh_lock_party *waiter = &name->waiters[index];
    const rh_lock_party *holder = party_of(name->holders, name->held, other);
    const rh_lock_party *earlier = party_of(name->waiters, index, other);

    if (other == waiter->owner) {
        return false;
    }
    return (holder && !together(holder->mode, waiter->mode)) ||
           (earlier && !together(earlier->mode, waiter->mode));
}

/* Upgrades also wait behind earlier upgrades that they could go together with. */
static void waiting_promises(const struct name_state *name)
{
    for (size_t i = 0; i < name->awaited; i++) {
        bool upgrade = party_of(name->holders, name->held, name->waiters[i].owner) != NULL;
        bool has_reason = upgrade && i > 0;

        for (uint64_t other = 1; other <= OWNERS; other++) {
            has_reason = has_reason || waits_for(name, i, other);
        }
        PROMISE(has_reason);
    }
}

static void circle_promises(const struct state *state)
{
    bool reaches[OWNERS + 1][OWNERS + 1] = {{false}};

    for (size_t n = 0; n < NAMES; n++) {
        const struct name_state *name = &state->names[n];

        for (size_t i = 0; i < name->awaited; i++) {
            for (uint64_t other = 1; other <= OWNERS; other++) {
                reaches[name->waiters[i].owner][other] |= waits_for(name, i, other);
            }
        }
    }
    for (size_t via = 1; via <= OWNERS; via++) {
        for (size_t from = 1; from <= OWNERS; from++) {
            for (size_t to = 1; to <= OWNERS; to++) {
                reaches[from][to] |= reaches[from][via] && reaches[via][to];
            }
        }
    }
    for (size_t owner = 1; owner <= OWNERS; owner++) {
        PROMISE(!reaches[owner][owner]);
    }
}

static void state_promises(const struct state *state)
{
    size_t waits[OWNERS + 1] = {0};

    for (size_t n = 0; n < NAMES; n++) {
        const struct name_state *name = &state->names[n];

        for (size_t i = 0; i < name->held; i++) {
            for (size_t k = 0; k < i; k++) {
                PROMISE(together(name->holders[i].mode, name->holders[k].mode));
            }
        }
        for (size_t i = 0; i < name->awaited; i++) {
            PROMISE(++waits[name->waiters[i].owner] == 1);
        }
        PROMISE(name->held > 0 || name->awaited == 0);
        waiting_promises(name);
    }
    circle_promises(state);
}

static void grant_promises(struct run *run, const struct state *after)
{
    const rh_lock_grant *grants = NULL;
    size_t count = 0;

    PROMISE(rh_lock_grants_read(run->grants, &grants, &count) == RH_OK);
    for (size_t i = 0; i < count; i++) {
        size_t n = (size_t)(*(const char *)grants[i].name - 'a');
        const rh_lock_party *party;

        PROMISE(grants[i].name_bytes == 1 && n < NAMES);
        PROMISE(grants[i].token > run->last_token);
        run->last_token = grants[i].token;
        PROMISE(party_of(run->before.names[n].waiters, run->before.names[n].awaited,
                         grants[i].owner) != NULL);
        PROMISE(party_of(after->names[n].waiters, after->names[n].awaited, grants[i].owner) ==
                NULL);
        party = party_of(after->names[n].holders, after->names[n].held, grants[i].owner);
        PROMISE(party && party->mode == grants[i].mode);
    }
}

/* One call that asks for something. */
static rh_status ask(struct run *run, unsigned kind, size_t n, uint64_t owner, rh_lock_mode mode)
{
    const rh_lock_party *held =
        party_of(run->before.names[n].holders, run->before.names[n].held, owner);
    uint64_t tokens[2] = {0, 0};
    const void *two[2] = {names[n], names[(n + 1) % NAMES]};
    const size_t bytes[2] = {1, 1};
    rh_status status;

    if (kind == 2) {
        status = rh_lock_acquire_many(run->table, two, bytes, 2, owner, mode, tokens);
    } else if (kind == 1) {
        status = rh_lock_request(run->table, names[n], 1, owner, mode, tokens);
    } else {
        status = rh_lock_try_acquire(run->table, names[n], 1, owner, mode, tokens);
    }
    if (status != RH_OK) {
        PROMISE(tokens[0] == 0 && tokens[1] == 0);
        PROMISE(status == (kind == 1 ? RH_DEADLOCK : RH_CONFLICT) ||
                (kind == 1 && status == RH_INVALID_ARGUMENT));
        return status;
    }
    PROMISE(kind == 1 || tokens[0] > 0);
    PROMISE(held || tokens[0] == 0 || tokens[0] > run->last_token);
    for (unsigned i = 0; i < 2; i++) {
        run->last_token = tokens[i] > run->last_token ? tokens[i] : run->last_token;
    }
    return status;
}

/* One call that gives something up; the grants that follow are looked at by the caller. */
static rh_status give_up(struct run *run, unsigned kind, size_t n, uint64_t owner,
                         rh_lock_mode mode)
{
    const struct name_state *name = &run->before.names[n];
    bool held = party_of(name->holders, name->held, owner) != NULL;
    rh_status status;

    switch (kind) {
    case 3:
        status = rh_lock_release_owner(run->table, owner, run->grants);
        break;
    case 4:
        status = rh_lock_cancel(run->table, names[n], 1, owner, run->grants);
        break;
    case 5:
        status = rh_lock_downgrade(run->table, names[n], 1, owner, mode, run->grants);
        PROMISE(held ? status == RH_OK || status == RH_INVALID_ARGUMENT : status == RH_NOT_OWNED);
        return status;
    case 6:
        run->now_ns += fuzz_u8(&run->input);
        status = rh_lock_expire(run->table, run->now_ns, run->grants);
        break;
    default:
        status = rh_lock_release(run->table, names[n], 1, owner, run->grants);
        PROMISE(status == (held ? RH_OK : RH_NOT_OWNED));
        return status;
    }
    PROMISE(status == RH_OK);
    return status;
}

static void call(struct run *run)
{
    unsigned kind = fuzz_u8(&run->input) % 10;
    size_t n = fuzz_u8(&run->input) % NAMES;
    uint64_t owner = 1 + fuzz_u8(&run->input) % OWNERS;
    rh_lock_mode mode = (rh_lock_mode)(RH_LOCK_INTENT_SHARED + fuzz_u8(&run->input) % MODES);
    bool asks = kind < 3;
    struct state after;
    rh_status status;

    if (kind == 9) {
        int64_t deadline_ns = run->now_ns + fuzz_u8(&run->input);

        PROMISE(rh_lock_renew(run->table, owner, deadline_ns) == RH_OK);
        return;
    }
    status = asks ? ask(run, kind, n, owner, mode) : give_up(run, kind, n, owner, mode);
    read_state(run->table, &after);
    state_promises(&after);
    if (status != RH_OK) {
        PROMISE(memcmp(&run->before, &after, sizeof after) == 0);
    } else if (!asks) {
        grant_promises(run, &after);
    }
    run->before = after;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct run run = {.input = {data, size}};
    size_t left = SIZE_MAX;

    PROMISE(rh_lock_table_new(NULL, &run.table) == RH_OK);
    PROMISE(rh_lock_grants_new(&run.grants) == RH_OK);
    for (unsigned calls = 0; calls < CALLS_MAX && run.input.left > 0; calls++) {
        call(&run);
    }
    for (uint64_t owner = 1; owner <= OWNERS; owner++) {
        PROMISE(rh_lock_release_owner(run.table, owner, run.grants) == RH_OK);
    }
    PROMISE(rh_lock_table_size(run.table, &left) == RH_OK && left == 0);
    rh_lock_grants_free(run.grants);
    rh_lock_table_free(run.table);
    return 0;
}

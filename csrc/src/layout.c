/* Making layouts and looking them up. */
#include <stdlib.h>
#include <string.h>

#include "layout_internal.h"
#include "node.h"
#include "xxh3.h"

static int by_name(const void *a, const void *b)
{
    const struct layout_node *x = a, *y = b;

    return rh_compare_bytes(x->name, x->name_bytes, y->name, y->name_bytes);
}

static int by_zone(const void *a, const void *b)
{
    const struct layout_node *x = *(const struct layout_node *const *)a;
    const struct layout_node *y = *(const struct layout_node *const *)b;

    return rh_compare_bytes(x->zone, x->zone_bytes, y->zone, y->zone_bytes);
}

/* Takes a node over as it is; names and zones still lie in the caller's memory. */
static rh_status take_node(rh_layout *layout, const rh_node *given, size_t *text_bytes)
{
    struct layout_node *node = &layout->nodes[layout->node_count];

    if (!rh_node_is_sound(given)) {
        return RH_INVALID_ARGUMENT;
    }
    if (given->name_bytes > SIZE_MAX - *text_bytes ||
        given->zone_bytes > SIZE_MAX - *text_bytes - given->name_bytes) {
        return RH_TOO_LARGE;
    }
    *text_bytes += given->name_bytes + given->zone_bytes;
    node->name = given->name ? given->name : "";
    node->name_bytes = given->name_bytes;
    node->zone = given->zone;
    node->zone_bytes = given->zone_bytes;
    node->weight = given->weight > 0 ? given->weight : 0; /* one zero only: -0.0 is another */
    layout->node_count++;
    layout->usable += node->weight > 0;
    layout->zoned = layout->zoned || (node->weight > 0 && node->zone != NULL);
    return RH_OK;
}

static rh_status take_nodes(rh_layout *layout, const rh_node *nodes, size_t count)
{
    rh_status status = RH_OK;
    size_t text_bytes = 0;
    char *at;

    layout->nodes = calloc(count + 1, sizeof *layout->nodes);
    if (layout->nodes == NULL) {
        return RH_NO_MEMORY;
    }
    for (size_t i = 0; i < count && status == RH_OK; i++) {
        status = take_node(layout, &nodes[i], &text_bytes);
    }
    if (status != RH_OK) {
        return status;
    }
    layout->text = at = malloc(text_bytes > 0 ? text_bytes : 1);
    if (at == NULL) {
        return RH_NO_MEMORY;
    }
    for (size_t i = 0; i < count; i++) {
        struct layout_node *node = &layout->nodes[i];

        memcpy(at, node->name, node->name_bytes);
        node->name = at;
        at += node->name_bytes;
        if (node->zone) {
            memcpy(at, node->zone, node->zone_bytes);
            node->zone = at;
            at += node->zone_bytes;
        }
    }
    qsort(layout->nodes, count, sizeof *layout->nodes, by_name);
    for (size_t i = 1; i < count; i++) {
        if (by_name(&layout->nodes[i - 1], &layout->nodes[i]) == 0) {
            return RH_DUPLICATE_NODE;
        }
    }
    return RH_OK;
}

/* Named zones from 0 in the order of their names, behind them one for each node without. */
static rh_status assign_zones(rh_layout *layout)
{
    struct layout_node **zoned = malloc((layout->node_count + 1) * sizeof *zoned);
    bool *used = calloc(layout->node_count + 1, sizeof *used);
    rh_status status = RH_NO_MEMORY;
    size_t count = 0, zone = 0;

    if (zoned == NULL || used == NULL) {
        goto out;
    }
    for (size_t i = 0; i < layout->node_count; i++) {
        if (layout->nodes[i].zone) {
            zoned[count++] = &layout->nodes[i];
        }
    }
    qsort(zoned, count, sizeof *zoned, by_zone);
    for (size_t i = 0; i < count; i++) {
        zone += i > 0 && by_zone(&zoned[i - 1], &zoned[i]) != 0;
        zoned[i]->zone_id = (uint32_t)zone;
    }
    zone += count > 0;
    for (size_t i = 0; i < layout->node_count; i++) {
        struct layout_node *node = &layout->nodes[i];

        if (node->zone == NULL) {
            node->zone_id = (uint32_t)zone++;
        }
        if (node->weight > 0 && !used[node->zone_id]) {
            used[node->zone_id] = true;
            layout->zones_in_use++;
        }
    }
    layout->zone_count = zone;
    status = RH_OK;
out:
    free(used);
    free(zoned);
    return status;
}

rh_status rh_layout_make(const rh_node *nodes, size_t count, uint32_t replicas, uint32_t partitions,
                         rh_layout **out)
{
    rh_layout *layout;
    rh_status status;

    if ((nodes == NULL && count > 0) || (partitions & (partitions - 1)) != 0 ||
        partitions < RH_LAYOUT_PARTITIONS_MIN || partitions > RH_LAYOUT_PARTITIONS_MAX) {
        return RH_INVALID_ARGUMENT;
    }
    if (count > RH_LAYOUT_NODES_MAX) {
        return RH_TOO_LARGE;
    }
    layout = calloc(1, sizeof *layout);
    if (layout == NULL) {
        return RH_NO_MEMORY;
    }
    layout->epoch = 1;
    layout->replicas = replicas;
    layout->partitions = partitions;
    layout->shift = 64;
    for (uint32_t left = partitions; left > 1; left /= 2) {
        layout->shift--;
    }
    status = take_nodes(layout, nodes, count);
    if (status == RH_OK && layout->usable < replicas) {
        status = RH_NOT_ENOUGH_NODES;
    }
    if (status == RH_OK && replicas > RH_LAYOUT_COPIES_MAX / partitions) {
        status = RH_TOO_LARGE;
    }
    if (status == RH_OK) {
        status = assign_zones(layout);
    }
    if (status == RH_OK) {
        layout->table = malloc((size_t)partitions * replicas * sizeof *layout->table);
        status = layout->table ? RH_OK : RH_NO_MEMORY;
    }
    if (status != RH_OK) {
        rh_layout_free(layout);
        return status;
    }
    *out = layout;
    return RH_OK;
}

void rh_layout_zone_nodes(const rh_layout *layout, uint32_t *out)
{
    for (size_t i = 0; i < layout->node_count; i++) {
        out[layout->nodes[i].zone_id] = (uint32_t)i;
    }
}

uint32_t rh_layout_find_zone(const rh_layout *layout, const char *zone, size_t zone_bytes,
                             const uint32_t *zone_nodes)
{
    size_t low = 0, high = layout->zone_count;

    while (low < high) {
        size_t middle = low + (high - low) / 2;
        const struct layout_node *node = &layout->nodes[zone_nodes[middle]];
        /* zones of single nodes stand behind the named ones */
        int order =
            node->zone ? rh_compare_bytes(node->zone, node->zone_bytes, zone, zone_bytes) : 1;

        if (order == 0) {
            return (uint32_t)middle;
        }
        if (order < 0) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    return LAYOUT_NONE;
}

void rh_layout_count(rh_layout *layout)
{
    for (size_t i = 0; i < (size_t)layout->partitions * layout->replicas; i++) {
        layout->nodes[layout->table[i]].copies++;
    }
}

rh_status rh_layout_new(const rh_node *nodes, size_t count, const rh_layout_options *options,
                        rh_layout **out)
{
    static const rh_layout_options defaults = {0};
    struct layout_limits limits = {0};
    rh_layout *layout = NULL;
    rh_status status;

    if (out == NULL) {
        return RH_INVALID_ARGUMENT;
    }
    options = options ? options : &defaults;
    status = rh_layout_make(
        nodes, count, options->replicas > 0 ? options->replicas : RH_LAYOUT_REPLICAS_DEFAULT,
        options->partitions > 0 ? options->partitions : RH_LAYOUT_PARTITIONS_DEFAULT, &layout);
    if (status == RH_OK) {
        status = rh_layout_limits_make(layout, &limits);
    }
    if (status == RH_OK) {
        status = rh_layout_limits_round(layout, &limits);
    }
    if (status == RH_OK) {
        status = rh_layout_deal(layout, &limits);
    }
    if (status == RH_OK) {
        rh_layout_count(layout);
        *out = layout;
        layout = NULL;
    }
    rh_layout_limits_free(&limits);
    rh_layout_free(layout);
    return status;
}

void rh_layout_free(rh_layout *layout)
{
    if (layout) {
        free(layout->table);
        free(layout->text);
        free(layout->nodes);
        free(layout);
    }
}

rh_status rh_layout_get_info(const rh_layout *layout, rh_layout_info *out)
{
    if (layout == NULL || out == NULL) {
        return RH_INVALID_ARGUMENT;
    }
    out->epoch = layout->epoch;
    out->partitions = layout->partitions;
    out->replicas = layout->replicas;
    out->nodes = layout->node_count;
    out->usable = layout->usable;
    out->zones = layout->zones_in_use;
    out->zoned = layout->zoned;
    return RH_OK;
}

rh_status rh_layout_get_member(const rh_layout *layout, size_t index, rh_layout_member *out)
{
    const struct layout_node *node;

    if (layout == NULL || out == NULL) {
        return RH_INVALID_ARGUMENT;
    }
    if (index >= layout->node_count) {
        return RH_UNKNOWN_NODE;
    }
    node = &layout->nodes[index];
    out->node.name = node->name;
    out->node.name_bytes = node->name_bytes;
    out->node.zone = node->zone;
    out->node.zone_bytes = node->zone_bytes;
    out->node.weight = node->weight;
    out->copies = node->copies;
    return RH_OK;
}

rh_status rh_layout_find(const rh_layout *layout, const void *name, size_t name_bytes,
                         uint32_t *out)
{
    struct layout_node wanted = {.name = name, .name_bytes = name_bytes};
    const struct layout_node *found;

    if (layout == NULL || out == NULL || (name == NULL && name_bytes > 0)) {
        return RH_INVALID_ARGUMENT;
    }
    found = bsearch(&wanted, layout->nodes, layout->node_count, sizeof wanted, by_name);
    if (found == NULL) {
        return RH_UNKNOWN_NODE;
    }
    *out = (uint32_t)(found - layout->nodes);
    return RH_OK;
}

rh_status rh_layout_partition(const rh_layout *layout, const void *key, size_t key_bytes,
                              uint32_t *out)
{
    if (layout == NULL || out == NULL || (key == NULL && key_bytes > 0)) {
        return RH_INVALID_ARGUMENT;
    }
    *out = (uint32_t)(XXH3_64bits(key, key_bytes) >> layout->shift);
    return RH_OK;
}

rh_status rh_layout_nodes(const rh_layout *layout, uint32_t partition, uint32_t *out)
{
    const uint16_t *row;

    if (layout == NULL || out == NULL || partition >= layout->partitions) {
        return RH_INVALID_ARGUMENT;
    }
    row = layout->table + (size_t)partition * layout->replicas;
    for (uint32_t i = 0; i < layout->replicas; i++) {
        out[i] = row[i];
    }
    return RH_OK;
}

rh_status rh_layout_lookup(const rh_layout *layout, const void *key, size_t key_bytes,
                           uint32_t *out)
{
    uint32_t partition;
    rh_status status = rh_layout_partition(layout, key, key_bytes, &partition);

    return status == RH_OK ? rh_layout_nodes(layout, partition, out) : status;
}

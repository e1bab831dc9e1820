/* What rings and layouts ask of the nodes they are given. */
#ifndef RINGHOLD_SRC_NODE_H
#define RINGHOLD_SRC_NODE_H

#include <stdbool.h>

#include <ringhold/node.h>

/* The order of names and zones: byte by byte, a prefix first. As memcmp. */
int rh_compare_bytes(const void *a, size_t a_bytes, const void *b, size_t b_bytes);

/* Whether name and zone lie somewhere and the weight is finite and not negative. */
bool rh_node_is_sound(const rh_node *node);

/* Whether names ascend and none occurs twice. */
bool rh_nodes_ascend(const rh_node *nodes, size_t count);

#endif

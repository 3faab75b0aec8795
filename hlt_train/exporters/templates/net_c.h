/* C interface to net.hpp: many events in one call, for C, Fortran, ctypes, or a framework's plug-in.
 *
 * Every function may be called from several threads at once. None allocates, net_time excepted. */
#ifndef HLT_TRAIN_NET_C_H
#define HLT_TRAIN_NET_C_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* What the network reads and gives, by position. A group's length is the most constituents that are read, 0 for scalars. */
int32_t net_n_groups(void);
const char* net_group_name(int32_t g);
int32_t net_group_variables(int32_t g);
int32_t net_group_length(int32_t g);
int32_t net_n_outputs(void);
const char* net_output_name(int32_t o);
int32_t net_output_exponent(int32_t o); /* the value of output o is logits[o] * 2^-exponent */
int32_t net_logit_bytes(void);          /* 4: int32_t, 8: int64_t, 0: float */

/* The paths of this architecture, all of the same results; those that the processor lacks are not available. */
int32_t net_n_paths(void);
const char* net_path_name(int32_t p);
int32_t net_path_available(int32_t p);
int32_t net_path(void);                /* the one that net_evaluate takes; -1: there is a dispatch error */
const char* net_dispatch_error(void);  /* NULL, or why NET_ISA cannot be followed */

/* n events. x[g]: [n, variables], or [n, length, variables] for constituents; count[g]: [n], read for constituents only; logits: [n, n_outputs], of the type
 * that net_logit_bytes says. Returns 0, or 1 where there is no such path here: nothing is written then. */
int32_t net_evaluate(const float* const* x, const int32_t* const* count, int64_t n, void* logits);
int32_t net_evaluate_path(int32_t p, const float* const* x, const int32_t* const* count, int64_t n, void* logits);

/* Times single events among the n given by path p; result: the nine numbers of Result in timing.hpp, in nanoseconds. Returns as net_evaluate_path. */
int32_t net_time(int32_t p, const float* const* x, const int32_t* const* count, int64_t n, double* result);

#ifdef __cplusplus
}
#endif

#endif

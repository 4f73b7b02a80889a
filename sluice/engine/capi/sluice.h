/* C interface of the Sluice engine. No LibTorch. Every function that can fail returns a status and
 * leaves a message for sluice_last_error() in the calling thread. Handles are not shared between
 * threads while in use. */
#ifndef SLUICE_H_
#define SLUICE_H_
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#if defined(__GNUC__)
#define SLUICE_API __attribute__((visibility("default")))
#else
#define SLUICE_API
#endif

/* 0 is success; others are the values of sluice::Code (sluice/base/error.h). */
typedef enum sluice_status {
  SLUICE_OK = 0,
  SLUICE_USAGE = 1,
  SLUICE_IO = 2,
  SLUICE_FORMAT = 3,
  SLUICE_SHAPE = 4,
  SLUICE_DTYPE = 5,
  SLUICE_MISSING = 6,
  SLUICE_UNSUPPORTED = 7,
  SLUICE_LIMIT = 8,
  SLUICE_CONFIG = 9,
  SLUICE_NUMERIC = 10,
  SLUICE_STATE = 11,
  SLUICE_INTERNAL = 12
} sluice_status;

typedef struct sluice_network sluice_network;

typedef struct sluice_options {
  int64_t batch;            /* samples per run; 0 means 1 */
  int32_t threads;          /* 0: all cores */
  int32_t verify_checksums; /* not 0: compare every tensor with its checksum */
  int32_t sequences;        /* not 0: sluice_run_tokens() takes samples of any length */
  int64_t last_rows;        /* with sequences: of each sample no more than that many of its last
                             * rows are computed behind the layers that mix rows, and written by
                             * sluice_run_tokens(): 1 for a decoder. 0: all */
} sluice_options;

typedef struct sluice_info {
  int64_t input_elements;  /* per sample */
  int64_t output_elements; /* per sample */
  int64_t input_rank;      /* entries used in input_shape */
  int64_t input_shape[8];
  int64_t parameters;
  int64_t macs; /* per sample */
  int64_t file_bytes;
  int64_t label_count; /* 0 when the bundle names no classes */
} sluice_info;

SLUICE_API const char* sluice_version(void);
/* options may be NULL. */
SLUICE_API sluice_status sluice_load(const char* path, const sluice_options* options,
                                     sluice_network** network);
SLUICE_API sluice_status sluice_query(const sluice_network* network, sluice_info* info);
/* Name of a class; NULL when out of range. Lives as long as the network. */
SLUICE_API const char* sluice_label(const sluice_network* network, int64_t index);
/* Name of one of the sizes that a nested network offers, cheapest first; NULL when out of range. */
SLUICE_API const char* sluice_size_name(const sluice_network* network, int64_t index);
/* What the following runs compute: a size by name or number; NULL: the last, as without a call. */
SLUICE_API sluice_status sluice_choose_size(sluice_network* network, const char* name);
/* input: count x input_elements, output: count x output_elements, count <= batch. */
SLUICE_API sluice_status sluice_run(sluice_network* network, const float* input,
                                    size_t input_elements, float* output, size_t output_elements,
                                    int64_t count);
/* Samples of different lengths, for networks whose first dimension is time (texts: one id per row).
 * Needs sluice_options.sequences. tokens[s] rows of sample s, up to the network's input_shape[0],
 * lie one sample after another in `input`, without gaps. `output` likewise, or one row per sample
 * where the network pools. A network with a cache continues each sample where its last run ended;
 * samples <= batch. */
SLUICE_API sluice_status sluice_run_tokens(sluice_network* network, const float* input,
                                           size_t input_elements, float* output,
                                           size_t output_elements, const int64_t* tokens,
                                           int64_t samples);
/* All samples start anew. */
SLUICE_API sluice_status sluice_reset(sluice_network* network);

/* Message of this thread's last failure; "" when none. Valid until the thread's next call. */
SLUICE_API const char* sluice_last_error(void);
/* NULL is fine. */
SLUICE_API void sluice_free(sluice_network* network);

#ifdef __cplusplus
}
#endif
#endif

/* The C interface of Tandem, an inference engine for language models on small machines.
 *
 * Made by cbindgen from engine/src/c_api.rs; engine/examples/generate.c shows its use.
 *
 * Handles (tandem_model, tandem_bundle, tandem_pool, tandem_session) are made by a function that sets
 * a pointer, and freed by the one called ..._free, once. A model, a bundle or a pool may be freed
 * while sessions made from it live on. A handle is a number, not an address: one that was freed, is of
 * another kind or was made up gives TANDEM_HANDLE.
 *
 * Every function may be called from any thread, at any time, but not from a signal handler. A session
 * is in one call at a time: another one meanwhile, from the callback too, gives TANDEM_BUSY;
 * only tandem_cancel, which is for other threads, and tandem_session_free may come at any time.
 * Sessions of their own run side by side, also on one pool. A thread that calls needs 512 KiB of
 * stack.
 *
 * Texts that go in as a path, a name, a level or a message end with a zero, others have a length and
 * need not. Texts that come out end with a zero, and belong to the library; only tandem_detokenize
 * writes to memory of the caller, without one. What points to memory is NULL only
 * where that is said to be allowed.
 *
 * Functions that return a tandem_status give TANDEM_OK or a reason, and tandem_error_message then
 * says more, for the thread that made the call.
 */

#ifndef TANDEM_H
#define TANDEM_H

#include <stddef.h>
#include <stdint.h>

// What a call came to. The message of a failure is `tandem_error_message`'s.
typedef enum tandem_status {
  // It worked.
  TANDEM_OK = 0,
  // A null pointer where none may be, or a number out of its range.
  TANDEM_ARGUMENT = 1,
  // A handle that was freed, is of another kind or never was one.
  TANDEM_HANDLE = 2,
  // The session is at work in another call.
  TANDEM_BUSY = 3,
  // A file cannot be opened.
  TANDEM_IO = 4,
  // The file is no model, a damaged one, or one that is not supported.
  TANDEM_MODEL = 5,
  // The file is no bundle, damaged, or for another model; or there is no such composition.
  TANDEM_BUNDLE = 6,
  // A text is not UTF-8 or cannot be expressed in the model's tokens, or the chat template cannot
  // be read or refuses it.
  TANDEM_TEXT = 7,
  // The tokens do not fit the context.
  TANDEM_CONTEXT = 8,
  // There is not enough memory.
  TANDEM_MEMORY = 9,
  // A defect of Tandem.
  TANDEM_INTERNAL = 10,
} tandem_status;

// Why a generation ended.
typedef enum tandem_stop {
  // The model said that the text ends.
  TANDEM_STOP_END_OF_TEXT = 0,
  // As many tokens as were asked for.
  TANDEM_STOP_MAX_TOKENS = 1,
  // The context is full.
  TANDEM_STOP_CONTEXT_FULL = 2,
  // The callback or `tandem_cancel` stopped it.
  TANDEM_STOP_CANCELLED = 3,
  // One of the options' `stop` was next.
  TANDEM_STOP_STRING = 4,
  // The answer is complete in the options' `json_schema` or `regex`.
  TANDEM_STOP_COMPLETE = 5,
} tandem_stop;

// An open bundle of adapters.
typedef struct tandem_bundle tandem_bundle;

// An open model.
typedef struct tandem_model tandem_model;

// Threads that several sessions share.
typedef struct tandem_pool tandem_pool;

// A model at work on one text, alone or with a composition of a bundle.
typedef struct tandem_session tandem_session;

// How a session runs. Fill it by `tandem_session_defaults`, then change what you want.
typedef struct tandem_session_options {
  // Tokens of the context, prompt and reply together; 0: the model's, at most 4096.
  uint32_t n_ctx;
  // Tokens of the prompt evaluated at once; 0: 256.
  uint32_t n_batch;
  // Threads, never more than there are cores, or than `pool` has; 0: all of them.
  uint32_t n_threads;
  // Threads for single tokens, which wait for memory more than they compute; 0: `n_threads`, or
  // where that is 0 the fewest that reach full speed, measured in some milliseconds.
  uint32_t n_threads_decode;
  // 1 keeps activations in float32 where they would be rounded to int8 for quantized weights.
  uint32_t exact;
  // Instructions to use, a name as `tandem run --cpu` takes it; NULL: the best there are.
  const char *level;
  // Threads that other sessions use as well, of which this one uses `n_threads`; NULL: threads of
  // its own.
  const struct tandem_pool *pool;
} tandem_session_options;

// How a text is continued. Fill it by `tandem_generate_defaults`, then change what you want.
typedef struct tandem_generate_options {
  // The most tokens to generate. Default: 256.
  uint32_t max_tokens;
  // 1 takes the text as it is, special tokens in it included, instead of as the input of the
  // composition's prompt or as a user's message in the model's chat template (a model that has
  // none takes every text as it is). Default: 0.
  uint32_t raw;
  // Seed of the random numbers: the same one gives the same text. Default: by the clock.
  uint64_t seed;
  // 0 always picks the most likely token. Default: 0.8.
  float temperature;
  // Pick among so many most likely tokens; 0 is off. Default: 40.
  uint32_t top_k;
  // Pick among the most likely tokens up to this probability; 1 is off. Default: 0.95.
  float top_p;
  // Pick among tokens at least this times as likely as the most likely; 0 is off. Default: 0.05.
  float min_p;
  // Pick among the most typical tokens up to this probability; 1 is off. Default: 1.
  float typical_p;
  // The logits of recent tokens are divided by it; 1 is off. Default: 1.
  float repeat_penalty;
  // Subtracted from a recent token's logit for each time it occurred. Default: 0.
  float frequency_penalty;
  // Subtracted from a recent token's logit. Default: 0.
  float presence_penalty;
  // How many tokens count as recent, at most 4096. Default: 64.
  uint32_t penalty_window;
  // The most tokens, up to 15, that are guessed from what the text said before and evaluated beside the next
  // one; 0 is off. The text is the same. Default: 15.
  uint32_t max_draft;
  // How many texts `stop` has. Default: 0.
  uint32_t n_stop;
  // Texts in UTF-8, each with a zero at its end, that end the answer and are not part of it. They are
  // read when the call begins. Default: NULL.
  const char *const *stop;
  // A JSON schema in UTF-8, with a zero at its end: the answer is JSON that it allows. It is read when the call
  // begins, and kept for the next ones. A schema that cannot be enforced gives `TANDEM_ARGUMENT`. An answer
  // that another stop ends is not whole. Default: NULL.
  const char *json_schema;
  // The same by a regular expression, which the whole answer is a match of; not both. Default: NULL.
  const char *regex;
} tandem_generate_options;

// Gets the text as it is generated, in whole characters of UTF-8: `n_bytes` bytes, and a zero
// after them. They are gone when it returns. It runs on the thread that asked for it.
// It must return, by neither `longjmp` nor a C++ exception: 0 to go on, anything else to stop.
typedef int32_t (*tandem_on_text)(const char *text, size_t n_bytes, void *user);

// What a generation came to.
typedef struct tandem_result {
  // Tokens of the prompt.
  size_t n_prompt;
  // Tokens generated, one that ends the text included.
  size_t n_generated;
  // Why it ended.
  enum tandem_stop stop;
} tandem_result;

// One message of a conversation. Both texts are UTF-8 and end with a zero.
typedef struct tandem_message {
  // Who speaks: "system", "user" or "assistant", or another role that the model's chat template
  // knows. It is for the program to say: what comes from outside is `content`.
  const char *role;
  // What is said. The texts of control tokens in it stay plain text.
  const char *content;
} tandem_message;

#ifdef __cplusplus
extern "C" {
#endif // __cplusplus

// The version of the library, such as "0.1.0".
const char *tandem_version(void);

// The name of the best instructions that this CPU has and Tandem uses, such as "neon" or "avx2":
// what sessions run on that ask for nothing else.
const char *tandem_level(void);

// The message of the last call that failed on this thread, in English, "" where none has. It stays
// until the next failure on the thread.
const char *tandem_error_message(void);

// Opens the model at `path`, a GGUF file (of a split model, the first part), and sets `model`,
// to NULL on a failure. The file is mapped, not copied: it must not change while it is open.
//
// `path` ends with a zero, `model` can be written to.
enum tandem_status tandem_model_open(const char *path, struct tandem_model **model);

// Opens a model that lies in memory, a GGUF file of `n_bytes`, and sets `model`, to NULL on a
// failure. The bytes are used where they are: they must stay, unchanged, until the model and all
// sessions made from it are freed and every call that was given one of them has returned.
//
// `bytes` are `n_bytes` that stay as said, `model` can be written to.
enum tandem_status tandem_model_open_memory(const void *bytes,
                                            size_t n_bytes,
                                            struct tandem_model **model);

// Frees a model; NULL is none. Sessions made from it keep what they need.
enum tandem_status tandem_model_free(struct tandem_model *model);

// How many tokens the model's vocabulary has, which is how many logits there are; 0 for what is no
// model. Token ids are below it.
size_t tandem_n_vocab(const struct tandem_model *model);

// Turns a text into token ids, with BOS before and EOS after it where the model wants them. The
// texts of control tokens in it become these tokens where `parse_special` is not 0. At most
// `capacity` ids are written to `ids`; `n_ids` is set to how many there are, which may be more: call
// again with more room then.
//
// `text` are `n_bytes` bytes that do not change meanwhile, `ids` has room for `capacity` ids (it
// may be NULL where that is 0), `n_ids` can be written to.
enum tandem_status tandem_tokenize(const struct tandem_model *model,
                                   const char *text,
                                   size_t n_bytes,
                                   int32_t parse_special,
                                   uint32_t *ids,
                                   size_t capacity,
                                   size_t *n_ids);

// Turns token ids, from the beginning of a text, into that text. Control tokens are written, such as
// `<|im_end|>`, where `show_special` is not 0, and left out otherwise; the space that some
// vocabularies put before every text is taken away. At most `capacity` bytes are written to `buffer`, no zero after them;
// `n_bytes` is set to how many there are, which may be more: call again with more room then.
//
// The bytes are those of the tokens, which may be parts of characters: of a whole text's tokens
// they are its UTF-8, of single ones they need not be. An id that is not in the vocabulary gives
// `TANDEM_ARGUMENT`.
//
// `ids` are `n_ids` ids that do not change meanwhile, `buffer` has room for `capacity` bytes (it
// may be NULL where that is 0), `n_bytes` can be written to.
enum tandem_status tandem_detokenize(const struct tandem_model *model,
                                     const uint32_t *ids,
                                     size_t n_ids,
                                     int32_t show_special,
                                     char *buffer,
                                     size_t capacity,
                                     size_t *n_bytes);

// Opens the bundle at `path` and sets `bundle`, to NULL on a failure. The file is mapped, not
// copied: it must not change while it is open.
//
// `path` ends with a zero, `bundle` can be written to.
enum tandem_status tandem_bundle_open(const char *path, struct tandem_bundle **bundle);

// Opens a bundle that lies in memory, and sets `bundle`, to NULL on a failure. The bytes are used
// where they are: they must stay, unchanged, until the bundle and all sessions that ever ran a
// composition of it are freed and every call that was given one of them has returned.
//
// `bytes` are `n_bytes` that stay as said, `bundle` can be written to.
enum tandem_status tandem_bundle_open_memory(const void *bytes,
                                             size_t n_bytes,
                                             struct tandem_bundle **bundle);

// Frees a bundle; NULL is none. Sessions that run a composition of it keep what they need.
enum tandem_status tandem_bundle_free(struct tandem_bundle *bundle);

// How many compositions a bundle has; 0 for what is no bundle.
size_t tandem_bundle_n_compositions(const struct tandem_bundle *bundle);

// The name of a bundle's composition, counted from 0; NULL where there is none. It stays until
// the bundle is freed.
const char *tandem_bundle_composition(const struct tandem_bundle *bundle, size_t index);

// Starts threads for sessions to share, and sets `pool`, to NULL on a failure. `n_threads` counts the
// thread that calls as well, and is never more than there are cores; 0: all cores. Name the pool in
// `tandem_session_options`. What sessions compute at the same time takes turns, some microseconds
// each.
//
// `pool` can be written to.
enum tandem_status tandem_pool_new(uint32_t n_threads,
                                   struct tandem_pool **pool);

// Frees a pool; NULL is none. Sessions that use it keep it; with the last of them its threads end.
enum tandem_status tandem_pool_free(struct tandem_pool *pool);

// Fills in the defaults: zeros.
//
// `options` can be written to, or is NULL.
void tandem_session_defaults(struct tandem_session_options *options);

// Makes a session and sets `session`, to NULL on a failure. `bundle` and `composition` are both
// NULL for the model alone; otherwise the bundle must be for the model, and is checked. `options`
// NULL is the defaults. The session keeps what it needs of model, bundle and pool: they may be freed.
//
// `composition` and the level in `options` are NULL or end with zeros, `options` is NULL or can be
// read, `session` can be written to.
enum tandem_status tandem_session_new(const struct tandem_model *model,
                                      const struct tandem_bundle *bundle,
                                      const char *composition,
                                      const struct tandem_session_options *options,
                                      struct tandem_session **session);

// Frees a session; NULL is none. A generation that is at work in it goes on to its end, with the
// memory it needs; `tandem_cancel`, called before, stops it.
enum tandem_status tandem_session_free(struct tandem_session *session);

// Runs another composition from the next token on; `bundle` and `composition` are as for
// `tandem_session_new`. What was evaluated is forgotten, unless the composition has the same content
// as the one before. On a failure the session stays as it was. A merge that the bundle does not
// store is computed each time.
//
// `composition` is NULL or ends with a zero.
enum tandem_status tandem_session_set_composition(const struct tandem_session *session,
                                                  const struct tandem_bundle *bundle,
                                                  const char *composition);

// What the model's chat template is given from now on beside the messages: the members of a JSON object,
// such as `{"enable_thinking": false}`; `tools` and `documents` are given so, too. NULL is nothing.
//
// JSON that is not valid, or no object, gives `TANDEM_ARGUMENT`.
//
// `json` is NULL or ends with a zero.
enum tandem_status tandem_session_set_template_args(const struct tandem_session *session,
                                                    const char *json);

// Evaluates token ids after those that the session has, and writes the logits for the token that
// follows the last, `tandem_n_vocab` floats, to `logits`. `capacity` is the room there in floats: at
// least so many, or 0 with `logits` NULL where none are wanted. On a failure nothing was evaluated.
//
// Ids that are not in the vocabulary, none at all, or too little room give `TANDEM_ARGUMENT`; more
// than the context has left `TANDEM_CONTEXT`. `tandem_cancel` does not stop it.
//
// `ids` are `n_ids` ids that do not change meanwhile, `logits` is NULL or has room for `capacity`
// floats.
enum tandem_status tandem_eval(const struct tandem_session *session,
                               const uint32_t *ids,
                               size_t n_ids,
                               float *logits,
                               size_t capacity);

// How many tokens a session has evaluated; 0 for what is no session, and for one that is at work.
size_t tandem_n_tokens(const struct tandem_session *session);

// Gives the tokens that a session has evaluated. At most `capacity` are written to `ids`; `n_ids` is
// set to how many there are, which may be more. A generation's last token is not among them.
//
// `ids` has room for `capacity` ids (it may be NULL where that is 0), `n_ids` can be written to.
enum tandem_status tandem_tokens(const struct tandem_session *session,
                                 uint32_t *ids,
                                 size_t capacity,
                                 size_t *n_ids);

// Forgets all tokens of a session but the first `n`, and sets `n_left` to how many are left: `n`, or
// all where there are no more than `n`, or none where a layer has forgotten what the next token
// sees. Layers with a window can go back by `n_batch` tokens at least, all others anywhere.
//
// `n_left` can be written to.
enum tandem_status tandem_rewind(const struct tandem_session *session,
                                 size_t n,
                                 size_t *n_left);

// Fills in the defaults.
//
// `options` can be written to, or is NULL.
void tandem_generate_defaults(struct tandem_generate_options *options);

// Answers a text, or continues it where `options` say raw, and gives the new text to `on_text`
// piece by piece, with `user`. It begins a new conversation each time; what of the prompt is the
// same as the last time is not evaluated again. `options` NULL is the defaults; `result`, which may
// be NULL, is set where the call is `TANDEM_OK`. A cancelled generation is no failure.
//
// `text` are `n_bytes` bytes that do not change meanwhile, `options` can be read and `result`
// written to unless they are NULL, `on_text` keeps the rules of its type.
enum tandem_status tandem_generate(const struct tandem_session *session,
                                   const char *text,
                                   size_t n_bytes,
                                   const struct tandem_generate_options *options,
                                   tandem_on_text on_text,
                                   void *user,
                                   struct tandem_result *result);

// Answers a conversation, as `tandem_generate` does a text: `n_messages` messages in the model's chat
// template, whatever prompt the composition has. The first one may be the system's, the last one is
// as a rule the user's. To go on, call again with the answer and the next message added: what was
// evaluated is not evaluated again.
//
// A model without a chat template, or one that refuses the conversation, gives `TANDEM_TEXT`; no
// messages, or `raw` in the options, `TANDEM_ARGUMENT`.
//
// `messages` are `n_messages` messages that, with their texts, do not change meanwhile and whose
// texts end with zeros; the rest as for `tandem_generate`.
enum tandem_status tandem_chat(const struct tandem_session *session,
                               const struct tandem_message *messages,
                               size_t n_messages,
                               const struct tandem_generate_options *options,
                               tandem_on_text on_text,
                               void *user,
                               struct tandem_result *result);

// Continues token ids, as `tandem_generate` does a text; `raw` in the options makes no difference.
// The ids are the whole prompt: what they begin with and the session has is not evaluated again.
//
// An id that is not in the vocabulary, or none at all, gives `TANDEM_ARGUMENT`.
//
// `ids` are `n_ids` ids that do not change meanwhile; the rest as for `tandem_generate`.
enum tandem_status tandem_generate_tokens(const struct tandem_session *session,
                                          const uint32_t *ids,
                                          size_t n_ids,
                                          const struct tandem_generate_options *options,
                                          tandem_on_text on_text,
                                          void *user,
                                          struct tandem_result *result);

// Stops the generation that is at work in a session, after the layer that is being evaluated. Does nothing where none is. May be called from any thread.
enum tandem_status tandem_cancel(const struct tandem_session *session);

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

#endif  /* TANDEM_H */

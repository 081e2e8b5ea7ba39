/* The C interface at work: a model, a bundle of adapters, a composition, a text.
 *
 *     generate MODEL BUNDLE COMPOSITION TEXT
 *
 * The answer goes to standard output as it is generated. Then the same is asked again, which the
 * callback stops after two pieces, then of the bundle's other compositions, all in one session, and
 * of one that is not there: what became of these goes to standard error. README.md tells how to
 * build it. */

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tandem.h"

/* Ends the program where a call failed. */
static void check(tandem_status status, const char *what)
{
    if (status != TANDEM_OK) {
        fprintf(stderr, "%s: %s (status %d)\n", what, tandem_error_message(), (int)status);
        exit(1);
    }
}

/* What the callback is given as `user`. */
struct reply {
    FILE *out;
    int n_pieces;
    int max_pieces;
};

static int32_t on_text(const char *text, size_t n_bytes, void *user)
{
    struct reply *reply = user;
    fwrite(text, 1, n_bytes, reply->out);
    fflush(reply->out);
    reply->n_pieces++;
    return reply->n_pieces == reply->max_pieces;
}

int main(int argc, char **argv)
{
    if (argc != 5) {
        fprintf(stderr, "usage: %s MODEL BUNDLE COMPOSITION TEXT\n", argv[0]);
        return 2;
    }
    const char *text = argv[4];
    fprintf(stderr, "Tandem %s, level %s\n", tandem_version(), tandem_level());

    tandem_model *model = NULL;
    tandem_bundle *bundle = NULL;
    check(tandem_model_open(argv[1], &model), "model");
    check(tandem_bundle_open(argv[2], &bundle), "bundle");
    for (size_t i = 0; i < tandem_bundle_n_compositions(bundle); i++) {
        fprintf(stderr, "composition %s\n", tandem_bundle_composition(bundle, i));
    }

    tandem_session_options how;
    tandem_session_defaults(&how);
    how.n_ctx = 256;
    tandem_session *session = NULL;
    check(tandem_session_new(model, bundle, argv[3], &how, &session), "session");

    tandem_generate_options options;
    tandem_generate_defaults(&options);
    options.temperature = 0;
    options.max_tokens = 64;
    struct reply reply = {stdout, 0, -1};
    tandem_result result;
    check(tandem_generate(session, text, strlen(text), &options, on_text, &reply, &result),
          "generation");
    printf("\n");
    fprintf(stderr, "%zu prompt tokens, %zu generated\n", result.n_prompt, result.n_generated);

    /* The callback stops it by what it returns; another thread would call tandem_cancel. */
    struct reply short_reply = {stderr, 0, 2};
    check(tandem_generate(session, text, strlen(text), &options, on_text, &short_reply, &result),
          "generation");
    if (result.stop != TANDEM_STOP_CANCELLED) {
        fprintf(stderr, "the callback did not stop it\n");
        return 1;
    }
    fprintf(stderr, "\nstopped after %d pieces\n", short_reply.n_pieces);

    /* The session runs the other compositions of the bundle as well, one after the other. */
    for (size_t i = 0; i < tandem_bundle_n_compositions(bundle); i++) {
        const char *name = tandem_bundle_composition(bundle, i);
        check(tandem_session_set_composition(session, bundle, name), name);
        fprintf(stderr, "%s:", name);
        struct reply other = {stderr, 0, -1};
        check(tandem_generate(session, text, strlen(text), &options, on_text, &other, &result), name);
        fprintf(stderr, "\n");
    }

    /* An error has a code and a message. The session stays as it was. */
    tandem_status status = tandem_session_set_composition(session, bundle, "no-such");
    if (status != TANDEM_BUNDLE) {
        fprintf(stderr, "a composition that is not there was found\n");
        return 1;
    }
    fprintf(stderr, "as wanted, status %d: %s\n", (int)status, tandem_error_message());

    check(tandem_session_free(session), "session");
    check(tandem_bundle_free(bundle), "bundle");
    check(tandem_model_free(model), "model");
    return 0;
}

//! Sessions that change their composition and share threads.

use std::ffi::CStr;
use std::ptr::{null, null_mut};

use tandem_engine::c_api::tandem_status::*;
use tandem_engine::c_api::*;

use crate::calls::*;

#[test]
fn a_session_changes_its_composition() {
    let names = [c"summarize-fr", c"translate-de", c"summarize"].map(Some);
    let fresh = names.map(|name| {
        let session = session(name.unwrap());
        let text = answer(session);
        assert_eq!(tandem_session_free(session), TANDEM_OK);
        text
    });
    let alone = plain(|_| ());
    let alone_text = answer(alone);
    assert!(fresh[0] == ANSWER && fresh[0] != fresh[1] && alone_text != fresh[0]);

    let bundle = bundle();
    for i in [0, 1, 0, 2, 1] {
        assert_eq!(set_composition(alone, bundle, names[i]), TANDEM_OK);
        assert_eq!(tandem_n_tokens(alone), 0);
        assert_eq!(answer(alone), fresh[i]);
    }
    assert_eq!(set_composition(alone, null(), None), TANDEM_OK);
    assert_eq!((tandem_n_tokens(alone), answer(alone)), (0, alone_text));

    // The same content keeps what was evaluated, also from another bundle.
    assert_eq!(set_composition(alone, bundle, names[0]), TANDEM_OK);
    assert_eq!(answer(alone), ANSWER);
    let known = tokens(alone);
    let other = self::bundle();
    assert_eq!(set_composition(alone, other, names[0]), TANDEM_OK);
    assert_eq!(tandem_bundle_free(other), TANDEM_OK);
    assert_eq!(tokens(alone), known);

    // What fails changes nothing.
    let status = set_composition(alone, bundle, Some(c"no-such"));
    fails(status, TANDEM_BUNDLE, "no-such");
    fails(
        set_composition(alone, bundle, None),
        TANDEM_ARGUMENT,
        "composition is NULL",
    );
    fails(
        set_composition(alone, null(), names[0]),
        TANDEM_ARGUMENT,
        "bundle is NULL",
    );
    let status = set_composition(alone, bundle, Some(c"\xff"));
    fails(status, TANDEM_TEXT, "UTF-8");
    fails(
        set_composition(alone, alone.cast(), names[0]),
        TANDEM_HANDLE,
        "handle of a bundle",
    );
    assert_eq!((tokens(alone), answer(alone)), (known, ANSWER.into()));
    assert_eq!(tandem_bundle_free(bundle), TANDEM_OK);
    fails(
        set_composition(alone, bundle, names[0]),
        TANDEM_HANDLE,
        "freed",
    );
    assert_eq!(tandem_session_free(alone), TANDEM_OK);
    fails(set_composition(alone, null(), None), TANDEM_HANDLE, "freed");
}

#[test]
fn sessions_share_a_pool() {
    let (model, bundle) = (model(), bundle());
    let mut pool = null_mut();
    assert_eq!(unsafe { tandem_pool_new(0, &mut pool) }, TANDEM_OK);
    let make = |name: &CStr, pool: *const tandem_pool, n_threads| {
        let mut session = null_mut();
        let options = tandem_session_options {
            pool,
            n_threads,
            ..options()
        };
        let name = name.as_ptr();
        let status = unsafe { tandem_session_new(model, bundle, name, &options, &mut session) };
        assert_eq!(status, TANDEM_OK, "{}", message());
        session
    };
    let names = [c"summarize-fr", c"translate-de"];
    // A known prompt's last token is computed alone, which rounds otherwise: each is asked anew.
    let anew = |session| {
        assert_eq!(rewind(session, 0), 0);
        answer(session)
    };
    let wanted = names.map(|name| {
        let session = make(name, null(), 1);
        let text = anew(session);
        assert_eq!(tandem_session_free(session), TANDEM_OK);
        text
    });
    let sessions = [0, 1].map(|i| make(names[i], pool, [0, 2][i]).addr());
    for status in [
        tandem_pool_free(pool),
        tandem_bundle_free(bundle),
        tandem_model_free(model),
    ] {
        assert_eq!(status, TANDEM_OK);
    }
    fails(tandem_pool_free(pool), TANDEM_HANDLE, "handle of a pool");
    let threads = sessions.map(|session| {
        let work = move || {
            let session = std::ptr::without_provenance_mut(session);
            let texts: Vec<_> = (0..8).map(|_| anew(session)).collect();
            assert_eq!(tandem_session_free(session), TANDEM_OK);
            texts
        };
        // The stack that the header asks for.
        let thread = std::thread::Builder::new().stack_size(512 << 10);
        thread.spawn(work).unwrap()
    });
    for (thread, wanted) in threads.into_iter().zip(wanted) {
        assert!(thread.join().unwrap().iter().all(|text| *text == wanted));
    }
}

#[test]
fn refuses_what_is_no_pool() {
    let (model, mut pool) = (model(), null_mut());
    fails(
        unsafe { tandem_pool_new(1, null_mut()) },
        TANDEM_ARGUMENT,
        "handle",
    );
    assert_eq!(unsafe { tandem_pool_new(u32::MAX, &mut pool) }, TANDEM_OK);
    let with = |pool| {
        let mut session = std::ptr::without_provenance_mut(1);
        let options = tandem_session_options { pool, ..options() };
        let status = unsafe { tandem_session_new(model, null(), null(), &options, &mut session) };
        assert!(session.is_null());
        status
    };
    fails(with(model.cast()), TANDEM_HANDLE, "handle of a pool");
    fails(tandem_pool_free(model.cast()), TANDEM_HANDLE, "pool");
    fails(tandem_model_free(pool.cast()), TANDEM_HANDLE, "model");
    assert_eq!(tandem_pool_free(pool), TANDEM_OK);
    fails(with(pool), TANDEM_HANDLE, "freed");
    assert_eq!(tandem_pool_free(null_mut()), TANDEM_OK);
    assert_eq!(tandem_model_free(model), TANDEM_OK);
}

//! What C holds: numbers in a table, given out as pointers that are never followed. So a handle that
//! was freed, is of another kind or was made up is an error and not undefined behaviour.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::failure::Failure;
use super::objects::{OpenBundle, Runner};
use super::tandem_status::TANDEM_HANDLE;
use crate::{Model, SharedPool};

/// Something that C may hold. A call keeps it alive even if another thread frees it meanwhile.
#[derive(Clone)]
pub(super) enum Object {
    Model(Arc<Model>),
    Bundle(Arc<OpenBundle>),
    Pool(Arc<SharedPool>),
    Session(Arc<Runner>),
}

/// A kind of objects.
pub(super) trait Kind: Sized {
    /// As messages call it.
    const NAME: &str;
    fn wrap(this: Arc<Self>) -> Object;
    fn unwrap(object: Object) -> Option<Arc<Self>>;
}

macro_rules! kinds {
    ($($type:ident is $variant:ident, $name:literal;)*) => {$(
        impl Kind for $type {
            const NAME: &str = $name;
            fn wrap(this: Arc<Self>) -> Object {
                Object::$variant(this)
            }
            fn unwrap(object: Object) -> Option<Arc<Self>> {
                match object {
                    Object::$variant(this) => Some(this),
                    _ => None,
                }
            }
        }
    )*};
}
kinds! {
    Model is Model, "model";
    OpenBundle is Bundle, "bundle";
    SharedPool is Pool, "pool";
    Runner is Session, "session";
}

struct Table {
    objects: BTreeMap<usize, Object>,
    /// The next number; none is ever given out again.
    next: usize,
}

static TABLE: Mutex<Table> = Mutex::new(Table {
    objects: BTreeMap::new(),
    next: 1,
});

fn table() -> MutexGuard<'static, Table> {
    // It is whole between any two statements below.
    TABLE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The handle of a new object.
pub(super) fn add<T: Kind, P>(object: T) -> *mut P {
    let object = T::wrap(Arc::new(object));
    let mut table = table();
    let number = table.next;
    table.next += 1;
    table.objects.insert(number, object);
    core::ptr::without_provenance_mut(number)
}

/// The object of a handle.
pub(super) fn get<T: Kind, P>(handle: *const P) -> Result<Arc<T>, Failure> {
    let object = table().objects.get(&handle.addr()).cloned();
    object.and_then(T::unwrap).ok_or_else(|| stale::<T>())
}

/// Takes a handle back; null is none.
pub(super) fn remove<T: Kind, P>(handle: *const P) -> Result<(), Failure> {
    if handle.is_null() {
        return Ok(());
    }
    let _: Arc<T> = get(handle)?;
    let object = table().objects.remove(&handle.addr());
    // Dropped with the table unlocked, as that may take its time; another thread may have been
    // quicker.
    object.map(drop).ok_or_else(|| stale::<T>())
}

fn stale<T: Kind>() -> Failure {
    let name = T::NAME;
    let message = std::format!("this is not the handle of a {name}, or one that was freed");
    Failure::new(TANDEM_HANDLE, message)
}

//! Naming a function in another process.
//!
//! A function is named in two ways at once: by the offset of its code in this executable, good in every process whose
//! executable has the same build id, and, if it is a `#[phalanx::task]`, by its path, good in any executable that has it
//! registered. What travels is the name; the code never does.
#![expect(unsafe_code, reason = "functions at offsets of the executable")]

use std::any::TypeId;

use phalanx_channel::Message;
use phalanx_channel::codec::{self, CodecError};
use phalanx_sys::image;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::registry;

/// Runs a function on serialized arguments and appends its serialized result.
pub type Trampoline = fn(u64, Payload<'_>, &mut Vec<u8>) -> Result<(), CodecError>;

/// Serialized arguments. Whoever reads them back drops them before it goes on: handles in them hold their objects.
#[derive(Debug)]
pub enum Payload<'a> {
    /// Somebody else's.
    Borrowed(&'a [u8]),
    /// A message of ours, from this byte on.
    Owned(Message, usize),
}

impl std::ops::Deref for Payload<'_> {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Self::Borrowed(bytes) => bytes,
            Self::Owned(message, from) => message.get(*from..).unwrap_or_default(),
        }
    }
}

/// A function that another process can be told to call: a function, a `fn` pointer, or a closure that captures nothing.
///
/// Implemented for up to eight parameters. One parameter is passed as itself, several as a tuple. Arguments and result are
/// serde values. `Marker` tells the numbers of parameters apart and is always inferred.
pub trait TaskFn<Args, Marker>: Copy + Send + 'static {
    /// What it returns.
    type Output: Serialize + 'static;

    /// Calls it.
    fn call(self, args: Args) -> Self::Output;
}

impl<F, R> TaskFn<(), fn() -> R> for F
where
    F: Fn() -> R + Copy + Send + 'static,
    R: Serialize + 'static,
{
    type Output = R;

    fn call(self, (): ()) -> R {
        self()
    }
}

impl<F, A, R> TaskFn<A, fn(A) -> R> for F
where
    F: Fn(A) -> R + Copy + Send + 'static,
    R: Serialize + 'static,
{
    type Output = R;

    fn call(self, arg: A) -> R {
        self(arg)
    }
}

macro_rules! several {
    ($($arg:ident)+) => {
        impl<F, $($arg,)+ R> TaskFn<($($arg,)+), fn($($arg),+) -> R> for F
        where
            F: Fn($($arg),+) -> R + Copy + Send + 'static,
            R: Serialize + 'static,
        {
            type Output = R;

            #[expect(non_snake_case, reason = "one name for the type and its value")]
            fn call(self, ($($arg,)+): ($($arg,)+)) -> R {
                self($($arg),+)
            }
        }
    };
}
several!(A B);
several!(A B C);
several!(A B C D);
several!(A B C D E);
several!(A B C D E G);
several!(A B C D E G H);
several!(A B C D E G H I);

/// A function could not be named, or its name could not be followed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[non_exhaustive]
pub enum TaskError {
    /// A closure with captured values: they cannot travel.
    #[error(
        "`{0}` captures values, which cannot travel to another program; pass them as arguments, or use fork or Zygote::fork"
    )]
    Captures(String),
    /// The code is not in the executable itself.
    #[error("`{0}` is not in the main executable (a shared library?); mark it #[phalanx::task]")]
    NotInExecutable(String),
    /// The worker runs another build, and the function has no registered name.
    #[error(
        "`{name}` was named by a program of another build ({theirs}, this one is {ours}); run the same executable, or mark the function #[phalanx::task]"
    )]
    BuildMismatch {
        /// The function.
        name: String,
        /// The caller's build.
        theirs: String,
        /// The worker's build.
        ours: String,
    },
    /// The worker's executable has no task of this name.
    #[error(
        "this program has no task `{0}`; mark it #[phalanx::task] and link its crate into the worker's executable"
    )]
    Unregistered(String),
    /// The arguments are not what the function takes.
    #[error("cannot call `{task}`: {reason}")]
    Arguments {
        /// The function.
        task: String,
        /// What the format said.
        reason: String,
    },
    /// The function ran, and its result does not serialize.
    #[error("the result of `{task}` is lost: {reason}")]
    Result {
        /// The function.
        task: String,
        /// What the format said.
        reason: String,
    },
    /// A request that makes no sense; a bug of the sender.
    #[error("a broken request: {0}")]
    Broken(String),
}

impl TaskError {
    /// Names the task in an error of the codec.
    #[must_use]
    pub fn from_codec(task: &str, error: &CodecError) -> Self {
        let (task, reason) = (task.to_owned(), error.to_string());
        if error.verb == "serialize" {
            Self::Result { task, reason }
        } else {
            Self::Arguments { task, reason }
        }
    }
}

/// A function's name, to be sent to another process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskRef {
    name: String,
    registered: bool,
    build: image::BuildId,
    /// Offset of the trampoline in the executable.
    trampoline: u64,
    /// Offset of the function, if it was given as a `fn` pointer.
    function: u64,
}

fn run<F, A, M>(function: u64, args: Payload<'_>, out: &mut Vec<u8>) -> Result<(), CodecError>
where
    F: TaskFn<A, M>,
    A: DeserializeOwned,
{
    let f: F = if size_of::<F>() == 0 {
        // SAFETY: a value of no bytes that is `Copy` (so owns nothing) exists: the sender had one.
        unsafe { std::ptr::NonNull::<F>::dangling().read() }
    } else {
        let address = image::image().base() + function as usize;
        debug_assert_eq!(size_of::<F>(), size_of::<usize>());
        // SAFETY: `TaskRef::of` lets only `fn` pointers of exactly this type through; the address is that of the same
        // function in this process (same build, checked by `resolve`).
        unsafe { std::mem::transmute_copy::<usize, F>(&address) }
    };
    let decoded: A = codec::decode(&args)?;
    drop(args);
    codec::encode(&f.call(decoded), out)
}

/// Returns the trampoline of a function.
#[must_use]
pub fn trampoline_of<F, A, M>(_: &F) -> Trampoline
where
    F: TaskFn<A, M>,
    A: DeserializeOwned,
{
    run::<F, A, M>
}

/// Returns a key that tells functions of this process apart, cheaper than a [`TaskRef`]: where the trampoline is, and where
/// the function is if it is a `fn` pointer.
#[must_use]
pub fn key_of<F, A, M>(function: &F) -> (usize, usize)
where
    F: TaskFn<A, M>,
    A: DeserializeOwned,
    M: 'static,
{
    let pointer = if size_of::<F>() != 0 && TypeId::of::<F>() == TypeId::of::<M>() {
        // SAFETY: `M` is a `fn` pointer type, and `F` is the same type.
        unsafe { std::mem::transmute_copy::<F, usize>(function) }
    } else {
        0
    };
    (run::<F, A, M> as *const () as usize, pointer)
}

impl TaskRef {
    /// Names a function.
    ///
    /// # Errors
    ///
    /// [`TaskError::Captures`], [`TaskError::NotInExecutable`].
    pub fn of<F, A, M>(function: &F) -> Result<Self, TaskError>
    where
        F: TaskFn<A, M>,
        A: DeserializeOwned,
        M: 'static,
    {
        let image = image::image();
        let registered = registry::name_of(TypeId::of::<F>());
        let name = registered
            .unwrap_or_else(std::any::type_name::<F>)
            .to_owned();
        let pointer = if size_of::<F>() == 0 {
            0
        } else if TypeId::of::<F>() == TypeId::of::<M>() {
            // SAFETY: `M` is a `fn` pointer type, and `F` is the same type.
            let address = unsafe { std::mem::transmute_copy::<F, usize>(function) };
            if !image.contains_code(address) {
                return Err(TaskError::NotInExecutable(name));
            }
            (address - image.base()) as u64
        } else {
            return Err(TaskError::Captures(name));
        };
        let trampoline = run::<F, A, M> as *const () as usize;
        if !image.contains_code(trampoline) && registered.is_none() {
            return Err(TaskError::NotInExecutable(name));
        }
        let trampoline = trampoline.wrapping_sub(image.base()) as u64;
        let build = *image.build_id();
        Ok(Self {
            name,
            registered: registered.is_some(),
            build,
            trampoline,
            function: pointer,
        })
    }

    /// Returns the function's path.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Finds the function in this process.
    ///
    /// # Errors
    ///
    /// [`TaskError::BuildMismatch`], [`TaskError::Unregistered`], [`TaskError::Broken`].
    pub fn resolve(&self) -> Result<Task, TaskError> {
        let image = image::image();
        if self.build == *image.build_id() {
            let address = image.base().wrapping_add(self.trampoline as usize);
            let function = image.base().wrapping_add(self.function as usize);
            if !image.contains_code(address)
                || (self.function != 0 && !image.contains_code(function))
            {
                return Err(TaskError::Broken(format!(
                    "`{}` at an offset that is not code",
                    self.name
                )));
            }
            // SAFETY: the same build has the same trampoline at the same offset: the sender took it of its own.
            let trampoline = unsafe { std::mem::transmute::<usize, Trampoline>(address) };
            return Ok(Task {
                trampoline,
                function: self.function,
            });
        }
        if self.registered {
            return match registry::find(&self.name) {
                Some(trampoline) => Ok(Task {
                    trampoline,
                    function: 0,
                }),
                None => Err(TaskError::Unregistered(self.name.clone())),
            };
        }
        let hex = |bytes: &[u8]| {
            bytes
                .iter()
                .take(8)
                .map(|byte| format!("{byte:02x}"))
                .collect::<String>()
        };
        Err(TaskError::BuildMismatch {
            name: self.name.clone(),
            theirs: hex(&self.build),
            ours: hex(image.build_id()),
        })
    }
}

/// A function found in this process.
#[derive(Clone, Copy, Debug)]
pub struct Task {
    trampoline: Trampoline,
    function: u64,
}

impl Task {
    /// Runs it on serialized arguments and appends its serialized result.
    ///
    /// # Errors
    ///
    /// [`CodecError`] when the arguments are not what it takes or the result does not serialize.
    pub fn call(&self, args: Payload<'_>, out: &mut Vec<u8>) -> Result<(), CodecError> {
        (self.trampoline)(self.function, args, out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn add(a: u32, b: u32) -> u32 {
        a + b
    }

    fn shout(text: String) -> String {
        text.to_uppercase()
    }

    fn through<F, A, M>(f: F, args: A) -> F::Output
    where
        F: TaskFn<A, M>,
        A: Serialize + DeserializeOwned,
        M: 'static,
        F::Output: DeserializeOwned,
    {
        let (mut bytes, mut out) = (Vec::new(), Vec::new());
        codec::encode(&args, &mut bytes).unwrap();
        TaskRef::of(&f)
            .unwrap()
            .resolve()
            .unwrap()
            .call(Payload::Borrowed(&bytes), &mut out)
            .unwrap();
        codec::decode(&out).unwrap()
    }

    #[test]
    fn functions_pointers_and_closures_are_called_by_name() {
        assert_eq!(through(add, (1, 2)), 3);
        assert_eq!(through(shout, "hello".to_owned()), "HELLO");
        assert_eq!(through(add as fn(u32, u32) -> u32, (3, 4)), 7);
        assert_eq!(through(|x: u8| x + 1, 4), 5);
        assert_eq!(through(|| 9_u8, ()), 9);
    }

    #[test]
    fn captures_are_refused_by_name() {
        let captured = 5_u64;
        let error = TaskRef::of(&move |x: u64| x + captured).unwrap_err();
        assert!(matches!(error, TaskError::Captures(_)), "{error}");
    }

    #[test]
    fn another_build_and_wild_offsets_are_refused() {
        let mut task = TaskRef::of(&add).unwrap();
        task.trampoline = 3;
        assert!(matches!(task.resolve(), Err(TaskError::Broken(_))));
        task.build = [3; 20];
        assert!(matches!(
            task.resolve(),
            Err(TaskError::BuildMismatch { .. })
        ));
        task.registered = true;
        assert_eq!(
            task.resolve().unwrap_err(),
            TaskError::Unregistered(task.name.clone())
        );
    }

    #[test]
    fn wrong_arguments_name_the_task() {
        let task = TaskRef::of(&shout).unwrap();
        let error = task
            .resolve()
            .unwrap()
            .call(Payload::Borrowed(&[200, 1]), &mut Vec::new())
            .unwrap_err();
        let error = TaskError::from_codec(task.name(), &error);
        assert!(error.to_string().contains("shout"), "{error}");
    }
}

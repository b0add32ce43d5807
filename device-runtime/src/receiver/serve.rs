//! The receiver on a link with the traits of `embedded-io`: a blocking one, or an async one beside other tasks. This module
//! knows neither the link nor what the application does with the requests that are its own.
//!
//! Firmware with one loop for everything calls [`Receiver::poll`] itself, as the module above shows.

use core::future::poll_fn;
use core::task::Poll;

use super::{MappedFlash, Policy, Receiver, Slots, Step, Verifier};

/// Bytes that are taken from the link at once.
const READ_BYTES: usize = 64;

/// Serves a blocking link until it ends, which is `Ok`. It reads only when there is nothing else to do; meanwhile bytes wait in
/// the driver.
///
/// `application` gets [`Step::Installed`] and [`Step::Request`], with the link to answer on.
///
/// # Errors
/// Those of the link, and of `application`. All that has been stored stays; the call can be repeated with the same receiver.
pub fn serve<L, F, const FRAME: usize>(
    link: &mut L,
    receiver: &mut Receiver<FRAME>,
    slots: &mut Slots<F>,
    policy: &Policy<'_, impl Verifier>,
    mut application: impl FnMut(&mut L, &mut Slots<F>, Step<'_>) -> Result<(), L::Error>,
) -> Result<(), L::Error>
where
    L: embedded_io::Read + embedded_io::Write,
    F: MappedFlash,
{
    let mut bytes = [0; READ_BYTES];
    loop {
        let arrived = link.read(&mut bytes)?;
        let mut rest = bytes.get(..arrived).unwrap_or(&[]);
        if rest.is_empty() {
            return Ok(());
        }
        loop {
            rest = rest.get(receiver.push(rest)..).unwrap_or(&[]);
            let step = receiver.poll(slots, policy);
            let idle = step == Step::Idle;
            if is_for_application(&step) {
                application(link, slots, step)?;
            }
            let answers = receiver.pull();
            if answers.is_empty() {
                if idle && rest.is_empty() {
                    break;
                }
                continue;
            }
            link.write_all(answers)?;
            link.flush()?;
            receiver.pulled(usize::MAX);
        }
    }
}

/// The same for an async link. Between two pieces of work, an erased page or a few hundred bytes written, the executor's other tasks
/// get their turn: inference goes on while an upload runs.
///
/// # Errors
/// As [`serve`].
pub async fn serve_async<L, F, const FRAME: usize>(
    link: &mut L,
    receiver: &mut Receiver<FRAME>,
    slots: &mut Slots<F>,
    policy: &Policy<'_, impl Verifier>,
    mut application: impl AsyncFnMut(&mut L, &mut Slots<F>, Step<'_>) -> Result<(), L::Error>,
) -> Result<(), L::Error>
where
    L: embedded_io_async::Read + embedded_io_async::Write,
    F: MappedFlash,
{
    let mut bytes = [0; READ_BYTES];
    loop {
        let arrived = link.read(&mut bytes).await?;
        let mut rest = bytes.get(..arrived).unwrap_or(&[]);
        if rest.is_empty() {
            return Ok(());
        }
        loop {
            rest = rest.get(receiver.push(rest)..).unwrap_or(&[]);
            let step = receiver.poll(slots, policy);
            let idle = step == Step::Idle;
            if is_for_application(&step) {
                application(link, slots, step).await?;
            }
            let answers = receiver.pull();
            if answers.is_empty() {
                if idle && rest.is_empty() {
                    break;
                }
                give_way().await;
                continue;
            }
            link.write_all(answers).await?;
            link.flush().await?;
            receiver.pulled(usize::MAX);
        }
    }
}

fn is_for_application(step: &Step<'_>) -> bool {
    matches!(step, Step::Installed { .. } | Step::Request { .. })
}

/// Pending once, and woken at once.
async fn give_way() {
    let mut given = false;
    poll_fn(|context| {
        if core::mem::replace(&mut given, true) {
            return Poll::Ready(());
        }
        context.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

#[cfg(all(test, feature = "ed25519"))]
mod tests;

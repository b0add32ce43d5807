//! The link: a serial port over USB (CDC-ACM). When the pipe of received bytes is full nobody takes the next packet, and the
//! hardware holds the host off.

use embassy_rp::peripherals::USB;
use embassy_rp::usb::{Driver, InterruptHandler};
use embassy_rp::{Peri, bind_interrupts};
use embassy_usb::class::cdc_acm::{CdcAcmClass, State};
use embassy_usb::{Builder, Config, UsbDevice};
use static_cell::{ConstStaticCell, StaticCell};

use crate::pipes;

bind_interrupts!(struct Interrupts {
    USBCTRL_IRQ => InterruptHandler<USB>;
});

/// Bytes of a packet at full speed.
const PACKET_BYTES: u16 = 64;
/// The numbers that embassy's examples use. A product has its own.
const VENDOR_AND_PRODUCT: (u16, u16) = (0xC0DE, 0xCAFE);

type Usb = Driver<'static, USB>;

/// Runs the device, and the two directions of its port.
#[embassy_executor::task]
pub(crate) async fn run(peripheral: Peri<'static, USB>) -> ! {
    static DESCRIPTORS: ConstStaticCell<[[u8; 256]; 2]> = ConstStaticCell::new([[0; 256]; 2]);
    static CONTROL: ConstStaticCell<[u8; 64]> = ConstStaticCell::new([0; 64]);
    static PACKET: ConstStaticCell<[u8; PACKET_BYTES as usize]> =
        ConstStaticCell::new([0; PACKET_BYTES as usize]);
    static STATE: StaticCell<State<'static>> = StaticCell::new();
    let mut config = Config::new(VENDOR_AND_PRODUCT.0, VENDOR_AND_PRODUCT.1);
    config.manufacturer = Some("Rankpatch");
    config.product = Some(env!("CARGO_PKG_NAME"));
    let [configuration, bos] = DESCRIPTORS.take();
    let driver = Driver::new(peripheral, Interrupts);
    let mut builder = Builder::new(driver, config, configuration, bos, &mut [], CONTROL.take());
    let port = CdcAcmClass::new(&mut builder, STATE.init(State::new()), PACKET_BYTES);
    let (to_host, from_host) = port.split();
    let mut device: UsbDevice<'static, Usb> = builder.build();
    let receiving = pipes::receive(from_host.into_buffered(PACKET.take()));
    embassy_futures::join::join3(device.run(), receiving, pipes::send(to_host)).await.0
}

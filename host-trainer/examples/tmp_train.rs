//! tmp
use rankpatch::train::*; use rankpatch::*;
use rankpatch_format::layout::Layout;
struct P(std::time::Instant);
impl Reporter for P { fn event(&mut self,e:&Event<'_>){ match e { Event::Step{step,loss,tokens_per_second,grad_norm,..}=> if step%50==0 {println!("{:.1}s step {step} loss {loss:.4} gn {grad_norm:.3} tok/s {tokens_per_second:.0}",self.0.elapsed().as_secs_f64())}, e=>println!("{:.1}s {e:?}",self.0.elapsed().as_secs_f64()) } } }
fn main(){
 let a:Vec<String>=std::env::args().skip(1).collect();
 let ov:Vec<(String,String)>=a[1..].chunks(2).map(|c|(c[0].trim_start_matches("--").into(),c[1].clone())).collect();
 let c=TrainConfig::load(std::path::Path::new(&a[0]),&ov).unwrap();
 let t=std::time::Instant::now();
 let net=base::quantize(&import::load(&c.base).unwrap()).unwrap();
 let img=base::Image::build(&net,Layout::RowMajor,16).unwrap();
 let data=TaskData::load(&c,&img.base().unwrap()).unwrap();
 println!("data {:.1}s",t.elapsed().as_secs_f64());
 let mut tr=Trainer::new(c,&net,data).unwrap();
 if tr.data().labels.is_empty() { println!("base {:?}",evaluate_float(tr.model(),None,&tr.data().test)); }
 tr.run(&mut P(std::time::Instant::now()),None).unwrap();
 let ad=tr.adapter().unwrap();
 let q=export::quantize(&ad,&net,1).unwrap();
 println!("file bytes {}",q.write().unwrap().len());
 let d=export::dequantize(&q,&net).unwrap();
 println!("dequantized {:?}",evaluate_float(tr.model(),Some(&d),&tr.data().test));
}

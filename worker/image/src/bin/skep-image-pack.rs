//! Packs one static program as an image: `skep-image-pack EXECUTABLE REFERENCE OUTPUT.tar [PORT/PROTOCOL…]`.
//!
//! Called by the Makefile for the demo image; the output loads with `docker load` and with Skep.
#![forbid(unsafe_code)]

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::Path;
use std::process::ExitCode;

use skep_image::Reference;
use skep_image::archive::{SingleBinary, single_binary};

const USAGE: &str = "usage: skep-image-pack EXECUTABLE REFERENCE OUTPUT.tar [PORT/PROTOCOL...]";

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    // Nothing can be done about a closed standard error.
    match pack(&args) {
        Ok(id) => {
            let _ = writeln!(io::stdout(), "{id}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            let _ = writeln!(io::stderr(), "skep-image-pack: {error}");
            ExitCode::FAILURE
        }
    }
}

fn pack(args: &[String]) -> Result<String, String> {
    let [executable, reference, output, ports @ ..] = args else {
        return Err(USAGE.to_owned());
    };
    let program = Path::new(executable).file_name().and_then(|name| name.to_str()).ok_or(USAGE)?;
    let content = fs::read(executable).map_err(|error| format!("cannot read {executable}: {error}"))?;
    let spec = SingleBinary {
        reference: Reference::parse(reference).map_err(|error| error.to_string())?,
        program: program.to_owned(),
        exposed_ports: if ports.is_empty() { vec!["80/tcp".to_owned()] } else { ports.to_vec() },
        env: Vec::new(),
    };
    // A half written archive must not look like a whole one to the next `make`.
    let temporary = format!("{output}.new");
    let file = File::create(&temporary).map_err(|error| format!("cannot create {temporary}: {error}"))?;
    let written = single_binary(&spec, &content, BufWriter::new(file)).map_err(|error| error.to_string());
    match written {
        Ok(id) => {
            fs::rename(&temporary, output).map_err(|error| format!("cannot create {output}: {error}"))?;
            Ok(id)
        }
        Err(error) => {
            let _ = fs::remove_file(&temporary);
            Err(error)
        }
    }
}

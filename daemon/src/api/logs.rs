//! Logs as clients read them: options from the query, one frame a line, with the time and the origin in front where
//! the client asks for them.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use axum::body::Body;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures::StreamExt;
use http::header;
use skep_proto::v1::{LogBatch, LogLine, LogOptions, TaskView};

use super::backend::{BoxStream, Failure};
use super::params::Params;
use super::stdcopy::{Stream, frame};
use super::{Api, ApiError, ApiVersion, clock};

/// From this version on the two forms of a log have media types of their own.
const MEDIA_TYPES_SINCE: ApiVersion = ApiVersion(1, 42);

/// How a client wants lines to look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Form {
    timestamps: bool,
    /// The origin of the line in front of it.
    details: bool,
    /// One raw stream, as of a terminal, without frames.
    raw: bool,
}

/// The options of a query.
fn options(params: &Params) -> Result<LogOptions, ApiError> {
    let (stdout, stderr) = (params.flag("stdout"), params.flag("stderr"));
    if !stdout && !stderr {
        return Err(ApiError::bad_request("Bad parameters: you must choose at least one stream"));
    }
    let tail = match params.text("tail") {
        "" | "all" => None,
        text => match text.parse::<i64>() {
            Ok(lines) if lines >= 0 => Some(lines),
            // What is no number of lines means all of them, to every engine there is.
            _ => None,
        },
    };
    Ok(LogOptions {
        follow: params.flag("follow"),
        since_ns: clock::parse("since", params.text("since"))?,
        until_ns: clock::parse("until", params.text("until"))?,
        tail,
        stdout,
        stderr,
    })
}

/// The logs of tasks, which may run anywhere: those given, and of whoever follows a service's those that come.
pub(super) async fn of_tasks(
    api: &Api,
    version: ApiVersion,
    tasks: Vec<TaskView>,
    service_id: Option<String>,
    tty: bool,
    params: &Params,
) -> Result<Response, ApiError> {
    let options = options(params)?;
    let form = Form { timestamps: params.flag("timestamps"), details: params.flag("details"), raw: tty };
    let services: BTreeMap<String, String> =
        tasks.into_iter().filter_map(|view| view.task).map(|task| (task.id, task.service_id)).collect();
    let ids: Vec<String> = services.keys().cloned().collect();
    let batches = api.backend.logs.task_logs(ids, service_id.clone(), options).await?;
    let origin = move |line: &LogLine| {
        let service = services.get(&line.task_id).or(service_id.as_ref()).map(String::as_str).unwrap_or_default();
        format!(
            "com.docker.swarm.node.id={},com.docker.swarm.service.id={service},com.docker.swarm.task.id={} ",
            line.node_id, line.task_id
        )
    };
    Ok(answer(api, version, form, batches, origin))
}

/// The log of one container of this node.
pub(super) async fn of_container(
    api: &Api,
    version: ApiVersion,
    name: &str,
    tty: bool,
    params: &Params,
) -> Result<Response, ApiError> {
    let options = options(params)?;
    let form = Form { timestamps: params.flag("timestamps"), details: false, raw: tty };
    let batches = api.backend.containers.logs(name, options).await?;
    Ok(answer(api, version, form, batches, |_| String::new()))
}

fn answer(
    api: &Api,
    version: ApiVersion,
    form: Form,
    batches: BoxStream<Result<LogBatch, Failure>>,
    origin: impl Fn(&LogLine) -> String + Send + 'static,
) -> Response {
    let media = match form.raw {
        true => "application/vnd.docker.raw-stream",
        false if version >= MEDIA_TYPES_SINCE => "application/vnd.docker.multiplexed-stream",
        false => "application/vnd.docker.raw-stream",
    };
    let failures = Arc::new(Mutex::new(Vec::new()));
    let heard = Arc::clone(&failures);
    let frames = batches.map(move |batch| {
        let (frames, mut failed) = render(batch, form, &origin);
        heard.lock().unwrap_or_else(PoisonError::into_inner).append(&mut failed);
        frames
    });
    // A frame of this kind ends the client's reading, so it comes last: one lost node must not hide the others.
    let summary =
        futures::stream::once(async move { summary(&failures.lock().unwrap_or_else(PoisonError::into_inner), form) });
    let frames = frames.take_until(api.ending.clone().cancelled_owned()).chain(summary);
    let body = Body::from_stream(frames.filter(|b| std::future::ready(!b.is_empty())).map(Ok::<_, std::io::Error>));
    ([(header::CONTENT_TYPE, media)], body).into_response()
}

/// The frames of a batch, and what could not be had.
fn render(batch: Result<LogBatch, Failure>, form: Form, origin: &impl Fn(&LogLine) -> String) -> (Bytes, Vec<String>) {
    let batch = match batch {
        Ok(batch) => batch,
        Err(failure) => return (Bytes::new(), vec![failure.to_string()]),
    };
    let mut out = Vec::new();
    for line in &batch.lines {
        let time = if form.timestamps { clock::rfc3339_fixed(line.at_ns) + " " } else { String::new() };
        let details = if form.details { origin(line) } else { String::new() };
        let stream = if line.stderr { Stream::Stderr } else { Stream::Stdout };
        let parts = [time.as_bytes(), details.as_bytes(), &line.data];
        match form.raw {
            true => parts.iter().for_each(|part| out.extend_from_slice(part)),
            false => out.extend_from_slice(&frame(stream, &parts)),
        }
    }
    let failures = batch.failures.iter().map(|f| format!("task {}: {}", f.task_id, f.message)).collect();
    (Bytes::from(out), failures)
}

/// The headers of the answer are out already, so the stream itself has to say what it lacks.
fn summary(failures: &[String], form: Form) -> Bytes {
    if failures.is_empty() {
        return Bytes::new();
    }
    let text = format!("warning: incomplete log stream. Some logs could not be retrieved: {}\n", failures.join("; "));
    match form.raw {
        true => Bytes::from(text),
        false => frame(Stream::System, &[text.as_bytes()]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use skep_proto::v1::LogFailure;

    fn line(data: &'static str, stderr: bool) -> LogLine {
        LogLine {
            task_id: "t".to_owned(),
            node_id: "n".to_owned(),
            at_ns: 1_700_000_000_000_000_000,
            stderr,
            data: Bytes::from_static(data.as_bytes()),
        }
    }

    #[test]
    fn lines_are_framed_with_time_and_origin_in_front() {
        let lines = || vec![line("a\n", false), line("b\n", true)];
        let batch = || Ok(LogBatch { lines: lines(), ..LogBatch::default() });
        let origin = |_: &LogLine| "o=1 ".to_owned();
        let plain = Form { timestamps: false, details: false, raw: false };
        assert_eq!(&render(batch(), plain, &origin).0[..], b"\x01\0\0\0\0\0\0\x02a\n\x02\0\0\0\0\0\0\x02b\n");
        let raw = Form { raw: true, ..plain };
        assert_eq!(&render(batch(), raw, &origin).0[..], b"a\nb\n");
        let full = Form { timestamps: true, details: true, raw: true };
        assert_eq!(
            &render(batch(), full, &origin).0[..],
            b"2023-11-14T22:13:20.000000000Z o=1 a\n2023-11-14T22:13:20.000000000Z o=1 b\n"
        );
    }

    #[test]
    fn what_could_not_be_had_is_said_in_the_stream() {
        let failure = LogFailure { task_id: "t".to_owned(), node_id: "n".to_owned(), message: "gone".to_owned() };
        let form = Form { timestamps: false, details: false, raw: false };
        let batch = LogBatch { failures: vec![failure], ..LogBatch::default() };
        let (out, failures) = render(Ok(batch), form, &|_| String::new());
        assert!(out.is_empty());
        let out = summary(&failures, form);
        assert_eq!(out[0], 3);
        assert!(String::from_utf8_lossy(&out).contains("task t: gone"));
        assert!(summary(&[], form).is_empty());
    }
}

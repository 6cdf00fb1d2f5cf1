//! `finetune generate`.

use std::io::{BufRead, IsTerminal, Read, Write};
use std::path::PathBuf;

use clap::Args;
use finetuned_engine::generate::{GenerateOptions, Generation, Generator, Message};
use finetuned_engine::{Event, Observer};

use super::{Global, print_json};

#[derive(Args)]
#[command(after_help = "\
Examples:
  finetune generate --model smollm2-135m-instruct --prompt 'What is a daemon?'
  finetune generate --model ./base --adapter ~/finetuned/adapters/support-7   (a conversation)
  echo 'Once upon a time' | finetune generate --model ./base --raw --temperature 0.8")]
pub struct GenerateArgs {
    /// A path or a name of the catalogue
    #[arg(long, value_name = "MODEL")]
    model: String,
    /// A PEFT adapter
    #[arg(long, value_name = "DIR")]
    adapter: Option<PathBuf>,
    /// What is asked [default: stdin; on a terminal, a conversation]
    #[arg(long)]
    prompt: Option<String>,
    /// The system message
    #[arg(long)]
    system: Option<String>,
    /// Continue the text as it is, without the chat template
    #[arg(long)]
    raw: bool,
    #[arg(long, default_value_t = 256)]
    max_tokens: usize,
    /// 0: always the likeliest token
    #[arg(long, default_value_t = 0.0)]
    temperature: f64,
    /// Sample from the k likeliest tokens; 0: from all
    #[arg(long, default_value_t = 0)]
    top_k: usize,
    /// Sample from the likeliest tokens that make up this probability
    #[arg(long, default_value_t = 1.0)]
    top_p: f64,
    #[arg(long, default_value_t = 42)]
    seed: u64,
    /// auto, cpu, gpu, gpu:N, vulkan:N, metal:N, dx12:N
    #[arg(long, default_value = "auto")]
    device: String,
    #[arg(long)]
    threads: Option<usize>,
    #[arg(long)]
    json: bool,
}

/// What is told while a device is tested.
pub(super) struct ToStderr;

impl Observer for ToStderr {
    fn event(&mut self, event: &Event) {
        match event {
            Event::Phase { name } => eprintln!("{name}"),
            Event::Note { message } => eprintln!("note: {message}"),
            _ => {}
        }
    }
}

pub fn run(args: &GenerateArgs, global: &Global) -> anyhow::Result<()> {
    let config = global.load()?;
    let model = crate::models::find_or_pull(&args.model, &config.models_dir, &mut |words| eprintln!("{words}"))?;
    let device = crate::devices::trusted(&args.device, &config.state_dir.join(crate::devices::FILE), &mut ToStderr)?;
    let mut generator = Generator::open(&model, args.adapter.as_deref(), &device, args.threads)?;
    let mut conversation: Vec<Message> = args.system.iter().map(Message::system).collect();
    let prompt = match &args.prompt {
        Some(prompt) => prompt.clone(),
        None if std::io::stdin().is_terminal() => return converse(args, &mut generator, conversation),
        None => {
            let mut text = String::new();
            std::io::stdin().read_to_string(&mut text)?;
            text.trim_end_matches('\n').to_string()
        }
    };
    conversation.push(Message::user(&prompt));
    let generation = answer(args, &mut generator, &conversation, &prompt)?;
    if args.json {
        return print_json(&generation);
    }
    Ok(())
}

fn converse(args: &GenerateArgs, generator: &mut Generator, mut conversation: Vec<Message>) -> anyhow::Result<()> {
    eprintln!("Ask; an empty line or Ctrl-D ends.");
    let mut lines = std::io::stdin().lock().lines();
    loop {
        eprint!("> ");
        let Some(line) = lines.next().transpose()?.filter(|line| !line.trim().is_empty()) else { return Ok(()) };
        conversation.push(Message::user(&line));
        let generation = answer(args, generator, &conversation, &line)?;
        conversation.push(Message::assistant(&generation.text));
    }
}

/// Writes the answer as it comes.
fn answer(
    args: &GenerateArgs,
    generator: &mut Generator,
    conversation: &[Message],
    prompt: &str,
) -> anyhow::Result<Generation> {
    let options = GenerateOptions {
        max_tokens: args.max_tokens,
        temperature: args.temperature,
        top_k: args.top_k,
        top_p: args.top_p,
        seed: args.seed,
    };
    let mut stdout = std::io::stdout();
    let mut show = |piece: &str| {
        // A reader that went away ends the generation.
        args.json || (stdout.write_all(piece.as_bytes()).and_then(|()| stdout.flush()).is_ok())
    };
    let generation = if args.raw {
        generator.complete(prompt, &options, &mut show)?
    } else {
        generator.generate(conversation, &options, &mut show)?
    };
    if !args.json {
        let _ = writeln!(std::io::stdout());
    }
    Ok(generation)
}

//! A broker of Kafka that is its own controller, and its tools.

use std::{
    env,
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
    process::{self, Command, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use nix::sys::signal::Signal;
use podtap_tests::{
    child::{self, Killed},
    collector,
    net::Network,
    wait::until,
};
use rcgen::{CertificateParams, KeyPair};

/// Java starts slowly on a busy machine.
const PATIENCE: Duration = Duration::from_secs(180);

pub const PLAINTEXT: &str = "127.0.0.1:9092";
/// Of the second one.
pub const SECOND: &str = "127.0.0.1:9097";
pub const SSL: &str = "127.0.0.1:9094";
/// With PLAIN and SCRAM.
pub const SASL_SSL: &str = "127.0.0.1:9095";
/// With SCRAM only.
pub const SASL_PLAINTEXT: &str = "127.0.0.1:9096";

/// Settings that all brokers have.
const COMMON: &str = "offsets.topic.replication.factor=1\noffsets.topic.num.partitions=1\ngroup.initial.rebalance.delay.ms=0\nlog.retention.ms=-1\n";

pub const USER: &str = "podtap";
pub const PASSWORD: &str = "to be or not to be";

/// A broker in a network namespace. Killed, and its data removed, when dropped.
pub struct Broker<'a> {
    network: &'a Network,
    directory: PathBuf,
    /// Where it answers without TLS and password.
    address: &'static str,
    process: Option<Killed>,
}

/// A message, as the console consumer prints it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Message {
    pub partition: u32,
    pub key: String,
    pub value: String,
}

impl<'a> Broker<'a> {
    /// Starts one, and returns when it answers.
    pub fn start(network: &'a Network) -> Self {
        let broker = Self::new(network, PLAINTEXT);
        broker.certify();
        let scram = ["SCRAM-SHA-256", "SCRAM-SHA-512"]
            .map(|mechanism| format!("--add-scram={mechanism}=[name={USER},password=\"{PASSWORD}\"]"));
        let properties = broker.properties();
        broker.format(&properties, &scram)
    }

    /// Starts another one of the same cluster, which the first one controls.
    pub fn join(&self) -> Self {
        let broker = Self::new(self.network, SECOND);
        let properties = format!(
            "process.roles=broker\nnode.id=2\ncontroller.quorum.voters=1@127.0.0.1:9093\nlisteners=PLAINTEXT://{SECOND}\n\
             listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT\ncontroller.listener.names=CONTROLLER\n\
             inter.broker.listener.name=PLAINTEXT\nlog.dirs={}\n{COMMON}",
            broker.file("data").display()
        );
        broker.format(&properties, &[])
    }

    fn new(network: &'a Network, address: &'static str) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let directory = env::temp_dir().join(format!("podtap-kafka-{}-{number}", process::id()));
        fs::create_dir_all(&directory).expect("a directory");
        Self { network, directory, address, process: None }
    }

    fn certify(&self) {
        let key = KeyPair::generate().expect("a key");
        let names = ["127.0.0.1".to_owned()];
        let certificate =
            CertificateParams::new(names).and_then(|params| params.self_signed(&key)).expect("a certificate");
        fs::write(self.authority(), certificate.pem()).expect("it can be written");
        fs::write(self.file("server.pem"), key.serialize_pem() + &certificate.pem()).expect("it can be written");
        for (file, password) in [(self.password(), PASSWORD), (self.wrong_password(), "that is the question")] {
            fs::write(file, format!("{password}\n")).expect("it can be written");
        }
    }

    /// Formats its storage, and starts it.
    fn format(mut self, properties: &str, arguments: &[String]) -> Self {
        fs::write(self.file("server.properties"), properties).expect("it can be written");
        let mut format = self.tool("kafka.tools.StorageTool", &["format", "--cluster-id", "4L6g3nShT-eMCtK--X86sw"]);
        run(format.arg("--config").arg(self.file("server.properties")).args(arguments));
        self.restart();
        self
    }

    fn properties(&self) -> String {
        let plain =
            format!("org.apache.kafka.common.security.plain.PlainLoginModule required user_{USER}=\"{PASSWORD}\";");
        let scram = "org.apache.kafka.common.security.scram.ScramLoginModule required;";
        let mut text = format!(
            "process.roles=broker,controller\nnode.id=1\ncontroller.quorum.voters=1@127.0.0.1:9093\n\
             listeners=PLAINTEXT://{PLAINTEXT},SSL://{SSL},SASL_SSL://{SASL_SSL},SASL_PLAINTEXT://{SASL_PLAINTEXT},CONTROLLER://127.0.0.1:9093\n\
             listener.security.protocol.map=PLAINTEXT:PLAINTEXT,SSL:SSL,SASL_SSL:SASL_SSL,SASL_PLAINTEXT:SASL_PLAINTEXT,CONTROLLER:PLAINTEXT\n\
             controller.listener.names=CONTROLLER\ninter.broker.listener.name=PLAINTEXT\n\
             log.dirs={}\nssl.keystore.type=PEM\nssl.keystore.location={}\n\
             listener.name.sasl_plaintext.sasl.enabled.mechanisms=SCRAM-SHA-256,SCRAM-SHA-512\n\
             listener.name.sasl_ssl.sasl.enabled.mechanisms=PLAIN,SCRAM-SHA-256,SCRAM-SHA-512\n\
             listener.name.sasl_ssl.plain.sasl.jaas.config={plain}\n\
             auto.create.topics.enable=true\n{COMMON}",
            self.file("data").display(),
            self.file("server.pem").display(),
        );
        for listener in ["sasl_ssl", "sasl_plaintext"] {
            for mechanism in ["scram-sha-256", "scram-sha-512"] {
                let _ = writeln!(text, "listener.name.{listener}.{mechanism}.sasl.jaas.config={scram}");
            }
        }
        text
    }

    fn file(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    /// The certificate that clients must trust, as PEM.
    pub fn authority(&self) -> PathBuf {
        self.file("authority.pem")
    }

    pub fn password(&self) -> PathBuf {
        self.file("password")
    }

    pub fn wrong_password(&self) -> PathBuf {
        self.file("wrong-password")
    }

    /// Kills it, with everything that it has not written.
    pub fn kill(&mut self) {
        self.process = None;
    }

    /// Stops it from answering.
    pub fn pause(&self) {
        self.signal(Signal::SIGSTOP);
    }

    /// Lets it answer what has come meanwhile.
    pub fn resume(&self) {
        self.signal(Signal::SIGCONT);
    }

    fn signal(&self, signal: Signal) {
        child::signal(&self.process.as_ref().expect("it was started").0, signal);
    }

    /// Starts it with its data, and returns when it answers.
    pub fn restart(&mut self) {
        let log = fs::File::create(self.file("log")).expect("it can be written");
        let mut command = self.tool("kafka.Kafka", &[]);
        command.arg(self.file("server.properties"));
        let child = command.stdout(log.try_clone().expect("a file")).stderr(log).spawn().expect("java runs");
        self.process = Some(Killed(child));
        until("the broker answers", PATIENCE, || {
            let process = self.process.as_mut().expect("it was started");
            if let Some(status) = process.0.try_wait().expect("it can be waited for") {
                panic!("{status}: {}", fs::read_to_string(self.file("log")).unwrap_or_default());
            }
            self.network.within(|| std::net::TcpStream::connect(self.address)).map(drop)
        });
    }

    /// Creates a topic.
    pub fn create(&self, topic: &str, partitions: u32, settings: &[&str]) {
        let mut command =
            self.tool("org.apache.kafka.tools.TopicCommand", &["--bootstrap-server", PLAINTEXT, "--create"]);
        command.args(["--topic", topic, "--partitions", &partitions.to_string()]);
        for setting in settings {
            command.args(["--config", setting]);
        }
        run(&mut command);
    }

    /// Creates a topic whose partitions are on these brokers, each on one. They may still be joining.
    pub fn create_on(&self, topic: &str, brokers: &[u32]) {
        let brokers: Vec<String> = brokers.iter().map(u32::to_string).collect();
        until("the topic is created", PATIENCE, || {
            let mut command =
                self.tool("org.apache.kafka.tools.TopicCommand", &["--bootstrap-server", PLAINTEXT, "--create"]);
            command.args(["--topic", topic, "--replica-assignment", &brokers.join(",")]);
            let output = command.stdin(Stdio::null()).output().expect("java runs");
            if output.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&output.stdout).into_owned()) }
        });
    }

    /// How many messages a topic has.
    pub fn count(&self, topic: &str) -> u64 {
        let mut command =
            self.tool("org.apache.kafka.tools.GetOffsetShell", &["--bootstrap-server", PLAINTEXT, "--topic", topic]);
        // topic:partition:offset
        run(&mut command).lines().filter_map(|line| line.rsplit(':').next()?.parse::<u64>().ok()).sum()
    }

    /// Reads all messages of a topic from its beginning.
    pub fn consume(&self, topic: &str) -> Vec<Message> {
        let count = self.count(topic);
        if count == 0 {
            return Vec::new();
        }
        let mut command = self.tool(
            "org.apache.kafka.tools.consumer.ConsoleConsumer",
            &["--bootstrap-server", PLAINTEXT, "--topic", topic],
        );
        command.args(["--from-beginning", "--max-messages", &count.to_string(), "--timeout-ms", "60000"]);
        command.args(["--property", "print.partition=true", "--property", "print.key=true"]);
        command.args(["--property", "key.separator=|"]);
        let message = |line: &str| {
            let mut parts = line.splitn(3, '|');
            let partition = parts.next()?.strip_prefix("Partition:")?.parse().ok()?;
            Some(Message { partition, key: parts.next()?.to_owned(), value: parts.next()?.to_owned() })
        };
        run(&mut command).lines().map(|line| message(line).unwrap_or_else(|| panic!("{line}"))).collect()
    }

    fn tool(&self, class: &str, arguments: &[&str]) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", self.network.path().display())).arg("java");
        command.args(["-Xmx512m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-cp"]);
        command.arg(jars().join("*")).arg(class).args(arguments);
        command
    }
}

impl Drop for Broker<'_> {
    fn drop(&mut self) {
        self.kill();
        let _ = fs::remove_dir_all(&self.directory);
    }
}

fn jars() -> PathBuf {
    let target: PathBuf =
        collector::binary().ancestors().nth(2).map(Path::to_owned).expect("it is in a profile's directory");
    let jars = target.join("interop/kafka");
    assert!(jars.exists(), "{} does not exist: tests/interop/prepare.sh kafka makes it", jars.display());
    jars
}

fn run(command: &mut Command) -> String {
    let output = command.stdin(Stdio::null()).output().expect("java runs");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(output.status.success(), "{command:?}: {}{}", text(&output.stdout), text(&output.stderr));
    text(&output.stdout)
}

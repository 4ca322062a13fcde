// Command lacuna makes remote data readable before it has been downloaded.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/alecthomas/kong"

	"github.com/lacunafs/lacuna/internal/config"
	"github.com/lacunafs/lacuna/internal/control"
	"github.com/lacunafs/lacuna/internal/daemon"
)

// version is set by the build.
var version = "devel"

// What the interface keeps to: data goes to standard output, and with --json
// nothing else does; errors go to standard error as "lacuna: ..." with the
// operation and its object, followed by "hint: ..." that names the next step;
// progress is shown on a terminal only; the exit statuses are control.Exit's.

// cli is the command line.
type cli struct {
	Root      string `placeholder:"DIR" help:"Cache directory [LACUNA_ROOT]. Default: /var/lib/lacuna for root, else lacuna in the user's cache directory."`
	Socket    string `placeholder:"PATH" help:"Control socket [LACUNA_SOCKET]. Default: /run/lacuna/lacuna.sock, or lacuna.sock in another --root."`
	Config    string `placeholder:"FILE" help:"Configuration file [LACUNA_CONFIG]. Default: /etc/lacuna/config.toml."`
	LogFormat string `placeholder:"text|json" help:"Format of the log on standard error [LACUNA_LOG_FORMAT]."`
	Verbose   bool   `short:"v" help:"Log more [LACUNA_VERBOSE]."`

	VersionFlag kong.VersionFlag `name:"version" help:"Print the version."`

	Mount    mountCmd    `cmd:"" help:"Mount a container image at once; what is read of it is fetched."`
	Umount   umountCmd   `cmd:"" help:"Undo mount."`
	Index    indexCmd    `cmd:"" help:"Make a SOCI index of an image, or look into one."`
	Convert  convertCmd  `cmd:"" help:"Make an image whose layers need no download, of one whose layers do."`
	Attach   attachCmd   `cmd:"" help:"Make a file behind a URL appear on this disk at once."`
	Detach   detachCmd   `cmd:"" help:"Take an attached file or a bound directory away again."`
	Bind     bindCmd     `cmd:"" help:"Serve a directory of hollow files to a daemon of your own."`
	Hydrate  hydrateCmd  `cmd:"" help:"Fetch everything of an attached file or a mount."`
	Status   statusCmd   `cmd:"" help:"Show what is served and how it goes."`
	Inspect  inspectCmd  `cmd:"" help:"Show an object of the cache."`
	Check    checkCmd    `cmd:"" help:"Prove what the cache says of its objects."`
	Features featuresCmd `cmd:"" help:"Show what this kernel can do."`
	Daemon   daemonCmd   `cmd:"" help:"Run the daemon."`
	Stop     stopCmd     `cmd:"" help:"End the instance; what is in use is served until it is free."`
	Demo     demoCmd     `cmd:"" help:"Show the main job against a server on this machine."`
	Version  versionCmd  `cmd:"" help:"Print the version."`

	Worker workerCmd `cmd:"" hidden:""`
	Keeper keeperCmd `cmd:"" hidden:""`
}

// app is what a verb has to work with.
type app struct {
	cli            *cli
	stdout, stderr io.Writer
	env            func(string) (string, bool)
	environ        []string
	queue          *daemon.LogQueue // in front of stderr, where this process logs
}

func main() {
	// Where nobody reads the log any more, that is no reason to end: a process
	// that holds or fills what readers wait for would take them with it.
	signal.Ignore(syscall.SIGPIPE)
	os.Exit(run(os.Args[1:], &app{
		stdout: os.Stdout, stderr: os.Stderr, env: os.LookupEnv, environ: os.Environ(),
	}))
}

// exitStatus is how kong ends a command that has only printed its help.
type exitStatus int

// run is the whole program; it returns the exit status.
func run(args []string, a *app) (status int) {
	defer func() {
		if p := recover(); p != nil {
			code, ok := p.(exitStatus)
			if !ok {
				panic(p)
			}
			status = int(code)
		}
	}()
	var c cli
	a.cli = &c
	parser, err := kong.New(&c,
		kong.Name("lacuna"),
		kong.Description("Lacuna makes remote data readable before it has been downloaded."),
		kong.Writers(a.stdout, a.stderr),
		kong.Exit(func(code int) { panic(exitStatus(code)) }),
		kong.Help(printHelp),
		kong.Vars{"version": "lacuna " + version},
	)
	if err != nil {
		return a.fail(fmt.Errorf("lacuna: internal error: %w", err))
	}
	if len(args) > 0 && args[0] == "help" {
		args = append(args[1:len(args):len(args)], "--help")
	}
	ctx, err := parser.Parse(args)
	if err != nil {
		return a.fail(wrongUsage(args, err))
	}
	defer func() {
		if a.queue != nil {
			a.queue.Close(lastLines)
		}
	}()
	if err := ctx.Run(a); err != nil {
		return a.fail(err)
	}
	return int(control.ExitOK)
}

// wrongUsage words kong's errors, which speak of its own grammar.
func wrongUsage(args []string, err error) error {
	message, help := err.Error(), "lacuna --help"
	var parse *kong.ParseError
	verb := ""
	if errors.As(err, &parse) && parse.Context != nil {
		verb, _, _ = strings.Cut(parse.Context.Command(), " <")
		verb = strings.TrimSuffix(verb, " make") // which is not typed
	}
	if operands, found := strings.CutPrefix(message, "expected \""); found && verb != "" {
		message = "expected " + strings.NewReplacer("<", "", ">", "", " ...", "...", "\"", "").Replace(operands)
	}
	switch {
	case verb != "":
		message, help = verb+": "+message, "lacuna "+verb+" --help"
	case len(args) == 0 || strings.HasPrefix(message, "expected one of"):
		message = "no command given"
	case strings.HasPrefix(message, "unexpected argument "):
		message = "unknown command " + strings.TrimPrefix(message, "unexpected argument ")
	}
	return &control.Error{Message: message, Hint: "see `" + help + "`", Exit: control.ExitUsage}
}

// errSilent ends a command with a status when the error has been told already.
type errSilent int

// Error is for the log only.
func (e errSilent) Error() string { return fmt.Sprintf("exit status %d", int(e)) }

// fail tells err and returns the exit status.
func (a *app) fail(err error) int {
	status, _ := a.failAfter("", err)
	return status
}

// failAfter is fail after an error with the hint before, which is not told again.
func (a *app) failAfter(before string, err error) (status int, hint string) {
	var silent errSilent
	if errors.As(err, &silent) {
		return int(silent), before
	}
	var of *fs.PathError
	output := errors.As(err, &of) && of.Path == os.Stdout.Name()
	if output && errors.Is(err, syscall.EPIPE) {
		return int(control.ExitError), before // who reads has seen enough, as with head
	}
	told := daemon.Explain(err)
	if output && errors.Is(err, syscall.ENOSPC) {
		told = &control.Error{Message: told.Message, Hint: "free space where the output goes", Exit: told.Exit}
	}
	if errors.Is(err, context.Canceled) {
		told = &control.Error{Message: "interrupted", Exit: control.ExitError}
	}
	fmt.Fprintf(a.stderr, "lacuna: %s\n", told.Message)
	if told.Hint != "" && told.Hint != before {
		fmt.Fprintf(a.stderr, "hint: %s\n", told.Hint)
	}
	return int(told.Exit), told.Hint
}

// config puts the settings together.
func (a *app) config() (config.Config, error) {
	var p config.Partial
	for _, f := range []struct {
		value string
		into  **string
	}{
		{a.cli.Root, &p.Root}, {a.cli.Socket, &p.Socket}, {a.cli.Config, &p.File}, {a.cli.LogFormat, &p.LogFormat},
	} {
		if f.value != "" {
			*f.into = &f.value
		}
	}
	if a.cli.Verbose {
		p.Verbose = &a.cli.Verbose
	}
	return config.Load(p, a.env, os.Geteuid())
}

// lastLines is how long a process that ends waits for somebody to read its log.
const lastLines = time.Second

// logger logs to standard error; a foreground command tells only what went wrong.
// From here on nothing that this process writes there is waited for.
func (a *app) logger(c config.Config, foreground bool) *slog.Logger {
	if a.queue == nil {
		a.queue = daemon.NewLogQueue(a.stderr, func(out io.Writer, lines int) {
			logTo(out, c, foreground).Warn("the log was not read in time, and lines of it were dropped", "lines", lines)
		})
		a.stderr = a.queue
	}
	return logTo(a.stderr, c, foreground)
}

func logTo(out io.Writer, c config.Config, foreground bool) *slog.Logger {
	level := slog.LevelInfo
	if foreground {
		level = slog.LevelWarn
	}
	if c.Verbose {
		level = slog.LevelDebug
	}
	if foreground && !c.Verbose && c.LogFormat == "text" {
		return slog.New(newPlainLog(out))
	}
	options := &slog.HandlerOptions{Level: level}
	if c.LogFormat == "json" {
		return slog.New(slog.NewJSONHandler(out, options))
	}
	return slog.New(slog.NewTextHandler(out, options))
}

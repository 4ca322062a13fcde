package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"

	"github.com/lacunafs/lacuna/internal/control"
	"github.com/lacunafs/lacuna/internal/daemon"
	"github.com/lacunafs/lacuna/internal/keeper"
)

// daemonCmd runs an instance that serves what others ask for.
type daemonCmd struct {
	Keeper string `enum:"own,systemd" default:"own" placeholder:"own|systemd" help:"Who holds the kernel's descriptors while the worker restarts: 'own' starts a small process for it, 'systemd' uses the service manager's descriptor store (for the unit file)."`
}

// Help is the long help.
func (daemonCmd) Help() string {
	return `The daemon does what mount, umount, attach, detach, bind, hydrate and status ask
for over the control socket. A command that is given while it starts waits for
it. It runs until "lacuna stop", SIGTERM or SIGINT, then takes down all that it
served; what is in use is served until it is free, or a second signal comes.
SIGHUP upgrades it to the program that is now on disk; readers notice a delay at
most.
If its worker dies it is restarted, and readers that sleep get their data from
the next one.

  # lacuna daemon &
  # lacuna attach https://example.org/big.iso /mnt/big.iso
  attached /mnt/big.iso (4.4 GiB)

EXIT STATUS
  0  it was stopped; with --keeper systemd 100 where "lacuna stop" did it
  1  error
  2  wrong usage, or a setting that cannot be
  3  not supported by this kernel or the cache's filesystem, or not root
  4  the cache was written by a newer version, or cannot be read
  6  another instance has the cache`
}

// Run is the verb.
func (c *daemonCmd) Run(a *app) error {
	cfg, err := a.config()
	if err != nil {
		return err
	}
	s := daemon.Settings{Config: cfg, Version: version}
	if c.Keeper == "systemd" {
		s.Systemd = true
		return a.work(s)
	}
	if err := a.awaitCache(cfg); err != nil {
		return err
	}
	return a.keep(s, daemon.KeepOptions{Env: a.environ})
}

// keep runs a keeper.
func (a *app) keep(s daemon.Settings, o daemon.KeepOptions) error {
	log := a.logger(s.Config, s.Foreground)
	status, err := daemon.RunKeeper(context.Background(), s, o, log)
	var worker *keeper.WorkerError
	if errors.As(err, &worker) || err == nil && status != 0 {
		// The worker has told why.
		log.Debug("ended", "status", status, "err", err)
		return errSilent(status)
	}
	if err != nil {
		return fmt.Errorf("keep the worker: %w", err)
	}
	return nil
}

// foreground runs an instance of the command's own; ready is called before it
// says that reads may begin.
func (a *app) foreground(s daemon.Settings, ready func()) error {
	s.Foreground, s.Version = true, version
	return a.keep(s, daemon.KeepOptions{Env: a.environ, Ready: writerFunc(func(p []byte) (int, error) {
		ready()
		return a.stdout.Write(p)
	})})
}

// writerFunc is an io.Writer.
type writerFunc func([]byte) (int, error)

// Write calls the function.
func (f writerFunc) Write(p []byte) (int, error) { return f(p) }

// workerCmd is how a keeper starts its worker.
type workerCmd struct{}

// ownHelp is the help of what nobody types.
const ownHelp = `This is how lacuna starts its own processes: use "lacuna daemon".

EXIT STATUS
  0  ok
  2  wrong usage`

// Help is the long help.
func (workerCmd) Help() string { return ownHelp }

// Run is the verb.
func (*workerCmd) Run(a *app) error {
	s, err := a.settings()
	if err != nil {
		return err
	}
	return a.work(s)
}

func (a *app) settings() (daemon.Settings, error) {
	value, ok := a.env(daemon.EnvSettings)
	if !ok {
		return daemon.Settings{}, &control.Error{
			Message: "this is how lacuna starts its own processes",
			Hint:    "use `lacuna daemon`", Exit: control.ExitUsage,
		}
	}
	s, err := daemon.ReadSettings(value)
	s.Version = version // of this program, not of the one before the upgrade
	return s, err
}

func (a *app) work(s daemon.Settings) error {
	from := keeper.ReadEnvironment(func(name string) string {
		value, _ := a.env(name)
		return value
	})
	s.Proxy = http.ProxyFromEnvironment
	status, err := daemon.RunWorker(s, from, a.environ, a.logger(s.Config, s.Foreground))
	if err != nil {
		if told := a.fail(err); status == 1 {
			status = told
		}
	}
	if status != 0 {
		return errSilent(status)
	}
	return nil
}

// keeperCmd is how a worker or a keeper starts the keeper that takes over.
type keeperCmd struct{}

// Help is the long help.
func (keeperCmd) Help() string { return ownHelp }

// Run is the verb.
func (*keeperCmd) Run(a *app) error {
	state, ok := a.env(keeper.EnvState)
	s, err := a.settings()
	if err != nil {
		return err
	}
	if !ok {
		return &control.Error{Message: "this is how lacuna starts its own processes", Hint: "use `lacuna daemon`", Exit: control.ExitUsage}
	}
	return a.keep(s, daemon.KeepOptions{Env: a.environ, State: state})
}

// versionCmd prints the version.
type versionCmd struct{}

// Help is the long help.
func (versionCmd) Help() string {
	return `EXIT STATUS
  0  ok
  2  wrong usage`
}

// Run is the verb.
func (*versionCmd) Run(a *app) error { return a.print("lacuna %s\n", version) }

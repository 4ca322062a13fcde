// Package keeper holds kernel descriptors so that the process that works with
// them may die without readers noticing.
//
// The last close of a fanotify group lets every sleeping and later reader
// through to the holes, which it reads as zeros; /dev/cachefiles and a FUSE
// mount go dead. A small process, the keeper, therefore holds a duplicate of
// each such descriptor. Its child, the worker, does everything else. When the
// worker dies the keeper starts another one and hands it the descriptors;
// until then requests queue up in the kernel.
//
// Worker and keeper speak systemd's file descriptor store protocol
// (sd_notify(3), sd_listen_fds(3)), so that systemd can be the keeper. [Client]
// is the worker's side, for both. [Run] is the keeper where there is no systemd.
//
// One worker at a time. The kernel matches an answer to a fanotify event by the
// number of the event's descriptor in the answering process, first match wins
// (fs/notify/fanotify/fanotify_user.c, process_access_response). Two workers
// that read one group get equal numbers for different events, and the answer of
// one lets the other's reader through to a hole. So an upgrade waits until the
// old worker is gone, and only then starts the new one; readers see a delay.
//
// Upgrade: SIGHUP makes the keeper execute its program anew in the same
// process. Descriptors, the notify socket with the messages queued in it, and
// the worker stay; a memfd tells the new program what is what ([state]). The
// program on disk is tried out first, because after execve there is no way back.
//
// The keeper killed alone: the worker sees it on [Client.Lost], still holds all
// descriptors, and starts a new keeper with [Client.StartKeeper]. That one is
// not the worker's parent: it watches it through a pidfd and knows no exit
// status of it. It is told of only once it answers, because a signal that came
// before would kill it.
//
// Locks: inbox.mu guards what messages change. The reading goroutine receives
// and handles under it, so whoever takes it knows that no message is half
// handled; the supervising goroutine holds it while it starts a worker, while
// it drains the socket after a death, and over execve.
package keeper

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/lacunafs/lacuna/internal/sys"
)

// Names of environment variables between keeper and worker.
const (
	EnvSocket    = "NOTIFY_SOCKET"
	EnvFDs       = "LISTEN_FDS"
	EnvFDNames   = "LISTEN_FDNAMES"
	EnvPID       = "LISTEN_PID"
	EnvKeeperPID = "LACUNA_KEEPER_PID"
	// EnvDeaths is set where workers have died: how many, and when the last one.
	EnvDeaths = "LACUNA_WORKER_DEATHS"
	// EnvState is set for a process that has to go on as keeper, or has to
	// show that it could: its value is for Options.State.
	EnvState = "LACUNA_KEEPER_STATE"
)

// Held are descriptors by name. Those that share a name come in no particular
// order: systemd hands out first what was pushed last.
type Held map[string][]*sys.FD

// Options are what Run needs to know. Functions may be nil.
type Options struct {
	// Path is the program of worker and keeper; empty: that of this process,
	// as it was named when the process started.
	Path string
	// WorkerArgs and KeeperArgs follow Path as arguments of a worker, and of
	// the keeper that takes over in an upgrade.
	WorkerArgs, KeeperArgs []string
	// Env is the environment of both, without the variables of this package.
	Env []string
	// State is the value of EnvState; empty: a keeper that begins. A program
	// calls Run before it touches anything when it is set.
	State string
	// Address is where the notify socket is bound: a path, or an abstract name
	// that starts with @. Empty: an abstract name of random letters. Anybody
	// in the network namespace can send to an abstract name; foreign messages
	// are refused, but they take up room in the queue, so where other users
	// are about, a path in a private directory is better. What lies at the
	// path is replaced; it is removed at the end.
	Address string
	// Limit is the highest number of held descriptors; 0: 16384.
	Limit int
	// StopTimeout is how long the worker may take to stop after SIGTERM, or from
	// when it last asked for more; 0: 30 s. Then it is killed.
	StopTimeout time.Duration
	// HandOverTimeout is how long the worker may take to leave after SIGUSR1,
	// in an upgrade; 0: 10 s. Then it is killed.
	HandOverTimeout time.Duration
	// HungUp tells, at SIGHUP, whether the terminal is gone: that is no
	// upgrade but SIGTERM. nil: never.
	HungUp func() bool
	// OnReady is called once, at the first READY=1 of the first worker, and
	// returns soon. It is not called in a keeper that takes over.
	OnReady func()
	// OnEvent is told what happens, from several goroutines, and returns soon.
	OnEvent func(Event)
	// Unattended answers the kernel while no worker runs and none will for a
	// second or more, or while LastStop runs: it denies every open and new
	// request, until ctx ends. It owns none of the descriptors.
	Unattended func(ctx context.Context, held Held) error
	// LastStop undoes what the last worker has left: it unmounts. It runs
	// before the descriptors are closed, unless none is held and the worker
	// stopped cleanly or never was ready: what stands then may be another
	// keeper's. While it returns an error something still stands, so nothing
	// is closed, and it is called again each second.
	LastStop func(held Held) error

	clock clock
}

// What happened, in Event.
const (
	WorkerStarted   = "worker started"
	WorkerEnded     = "worker ended"
	StartFailed     = "worker could not be started"
	Waiting         = "waiting before the next start"
	Refused         = "message refused"
	SocketFailed    = "notify socket failed"
	Status          = "status"
	Upgraded        = "keeper upgraded"
	HandedOver      = "worker has handed over"
	Killed          = "worker killed because it did not leave in time"
	UpgradeRefused  = "upgrade refused"
	UnattendedError = "denying requests while no worker runs"
	LastStopError   = "undoing what the worker left"
)

// Event is something that a log should tell.
type Event struct {
	// What is one of the constants above.
	What string
	// PID is the worker's, or the sender's of a refused message; 0: none.
	PID int
	// Wait is the time until the next start.
	Wait time.Duration
	// Text is a status that the worker sent, or how it ended.
	Text string
	// Err is why.
	Err error
}

// Run is the keeper. It starts a worker and restarts it whenever it dies, at
// once the first times, then after a growing time. It returns with the exit
// status for this process when
//   - the worker has announced STOPPING=1 and ended: with the worker's status;
//   - the worker has ended and none was READY since the keeper began, so that
//     it cannot even begin: with the worker's status (128+n for signal n, 1
//     where the program could not be started), and an error;
//   - SIGTERM, SIGINT or SIGQUIT came, or ctx ended: with the worker's status once it
//     has stopped, 1 where it had to be killed.
//
// SIGHUP upgrades. A status other than 0 always comes with an error.
func Run(ctx context.Context, o Options) (exit int, err error) {
	if err := o.fill(); err != nil {
		return 1, err
	}
	if o.State == stateTrial {
		return answerTrial()
	}
	s, err := newSupervisor(o)
	if err != nil {
		return 1, err
	}
	exit, err = s.run(ctx)
	if closeErr := s.close(); closeErr != nil {
		err = errors.Join(err, closeErr)
		exit = max(exit, 1)
	}
	return exit, err
}

func (o *Options) fill() error {
	if o.Path == "" {
		path, err := os.Executable()
		if err != nil {
			return fmt.Errorf("find this program: %w", err)
		}
		o.Path = path
	}
	if o.Limit == 0 {
		o.Limit = 16384
	}
	if o.StopTimeout == 0 {
		o.StopTimeout = 30 * time.Second
	}
	if o.HandOverTimeout == 0 {
		o.HandOverTimeout = 10 * time.Second
	}
	if o.OnEvent == nil {
		o.OnEvent = func(Event) {}
	}
	if o.HungUp == nil {
		o.HungUp = func() bool { return false }
	}
	if o.OnReady == nil {
		o.OnReady = func() {}
	}
	if o.clock.now == nil {
		o.clock = wallClock()
	}
	return nil
}

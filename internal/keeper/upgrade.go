package keeper

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"syscall"
	"time"

	"github.com/lacunafs/lacuna/internal/sys"
)

const (
	// stateTrial is the value of EnvState that asks a program for proof that
	// it can take over: trialAnswer on descriptor trialFD, and exit status 0.
	stateTrial = "trial"
	trialFD    = 3
	trialLimit = 10 * time.Second
)

var trialAnswer = fmt.Appendf(nil, "lacuna keeper, state %d\n", stateVersion)

// answerTrial is the tried program's part.
func answerTrial() (int, error) {
	if !sys.IsOpen(trialFD) {
		return 1, fmt.Errorf("%s=%s without descriptor %d", EnvState, stateTrial, trialFD)
	}
	f := os.NewFile(trialFD, "trial")
	_, err := f.Write(trialAnswer)
	if err := errors.Join(err, f.Close()); err != nil {
		return 1, fmt.Errorf("answer the keeper's trial: %w", err)
	}
	return 0, nil
}

// try runs the program on disk once and has it prove that it can take over.
// What execve starts cannot be taken back, and a program that then fails
// closes every descriptor.
func try(ctx context.Context, o *Options) (err error) {
	answer, theirs, err := os.Pipe()
	if err != nil {
		return fmt.Errorf("try %s: %w", o.Path, err)
	}
	defer func() { err = errors.Join(err, answer.Close()) }()
	ctx, cancel := context.WithTimeout(ctx, trialLimit)
	defer cancel()
	var said bytes.Buffer
	cmd := exec.CommandContext(ctx, o.Path, o.KeeperArgs...)
	cmd.Env = append(cleanEnv(o.Env), EnvState+"="+stateTrial)
	cmd.ExtraFiles = []*os.File{theirs} // becomes trialFD
	cmd.Stderr = &said
	cmd.WaitDelay = time.Second
	runErr := cmd.Run()
	if err := theirs.Close(); err != nil {
		return fmt.Errorf("try %s: %w", o.Path, err)
	}
	if runErr != nil {
		return fmt.Errorf("try %s: %w: %.200s", o.Path, runErr, said.Bytes())
	}
	if err := answer.SetReadDeadline(time.Now().Add(time.Second)); err != nil {
		return fmt.Errorf("try %s: %w", o.Path, err)
	}
	got := make([]byte, len(trialAnswer)+1)
	n, err := answer.Read(got)
	if err != nil || !bytes.Equal(got[:n], trialAnswer) {
		return fmt.Errorf("try %s: it does not read this keeper's state: answer %q", o.Path, got[:n])
	}
	return nil
}

// reexec executes the program on disk in this process, with everything held
// and the worker. It returns only with an error, and then nothing has changed.
func (s *supervisor) reexec(ctx context.Context) error {
	if err := try(ctx, &s.opt); err != nil {
		return err
	}
	// No message is half handled while the lock is held; those in the queue
	// stay there.
	s.inbox.mu.Lock()
	defer s.inbox.mu.Unlock()
	st := s.stateLocked()
	memfd, err := st.write()
	if err != nil {
		return err
	}
	numbers := append(st.numbers(), memfd.Int())
	err = s.execWith(numbers, memfd.Int())
	for _, raw := range numbers {
		err = errors.Join(err, sys.SetInherit(raw, false))
	}
	return errors.Join(err, memfd.Close())
}

func (s *supervisor) stateLocked() state {
	in := s.inbox
	st := state{
		Version: stateVersion, Address: in.address, Socket: in.socket.Int(), HandOver: true,
		Ready: in.life.ready, Stopping: in.life.stopping, EverReady: in.life.everReady,
		Deaths: in.life.deaths,
	}
	if s.worker != nil {
		st.Worker, st.Process, st.Child = s.worker.pid, s.worker.process.Int(), s.worker.child
	}
	for _, e := range in.held.entries {
		st.Held = append(st.Held, stateHeld{e.name, e.fd.Int()})
	}
	return st
}

// stopRequested is an error when a signal other than SIGHUP waits, which stays
// there. A SIGHUP is taken out: the upgrade that it asks for is this one.
func (s *supervisor) stopRequested() error {
	for {
		select {
		case sig := <-s.signals:
			if sig != syscall.SIGHUP {
				s.requeue(sig)
				return fmt.Errorf("a stop was requested first: %v", sig)
			}
		default:
			return nil
		}
	}
}

func (s *supervisor) execWith(numbers []int, memfd int) error {
	// Nobody else may fork while these descriptors can be inherited.
	syscall.ForkLock.RLock()
	defer syscall.ForkLock.RUnlock()
	for _, raw := range numbers {
		if err := sys.SetInherit(raw, true); err != nil {
			return err
		}
	}
	// A signal that comes before the new program listens, some milliseconds,
	// would kill it. It is lost instead, and has to be sent again.
	restore, err := sys.IgnoreSignals(syscall.SIGTERM, syscall.SIGINT, syscall.SIGQUIT, syscall.SIGHUP)
	if err != nil {
		return err
	}
	// What came while the program was tried is in the channel, and would be lost.
	if err := s.stopRequested(); err != nil {
		return errors.Join(err, restore())
	}
	o := &s.opt
	argv := append([]string{o.Path}, o.KeeperArgs...)
	env := append(cleanEnv(o.Env), EnvState+"="+strconv.Itoa(memfd))
	err = sys.Exec(o.Path, argv, env)
	return errors.Join(err, restore())
}

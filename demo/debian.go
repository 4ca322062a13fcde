package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// debootstrapTime is how long debootstrap may take, so that all is done in a minute.
const debootstrapTime = 20 * time.Second

// errNoDebian: debootstrap is not there, or was not done in time.
var errNoDebian = errors.New("no Debian root filesystem")

// debian makes the layers of the root filesystem that debootstrap unpacks. It is
// not configured, for which there is no time, but bash and perl run in it.
func (d *demo) debian(ctx context.Context, t *tree) error {
	if _, err := exec.LookPath("debootstrap"); err != nil {
		return fmt.Errorf("%w: debootstrap is not installed", errNoDebian)
	}
	root := filepath.Join(d.work, "debian")
	limited, cancel := context.WithTimeout(ctx, debootstrapTime)
	defer cancel()
	if err := d.say("debootstrap --foreign --variant=minbase stable (for %.0f s at most)", debootstrapTime.Seconds()); err != nil {
		return err
	}
	cmd := group(exec.CommandContext(limited, "debootstrap", "--foreign", "--variant=minbase", "stable", root))
	out, err := cmd.CombinedOutput()
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if err != nil {
		if limited.Err() != nil {
			return fmt.Errorf("%w: debootstrap was not done in time", errNoDebian)
		}
		lines := strings.Split(strings.TrimSpace(string(bytes.ToValidUTF8(out, nil))), "\n")
		return fmt.Errorf("%w: debootstrap: %w: %s", errNoDebian, err, lines[len(lines)-1])
	}
	t.layer("debian")
	if err := t.top(root); err != nil {
		return err
	}
	if err := t.addAll(ctx, root, "", all, func(rel string, _ fs.DirEntry) bool {
		return rel == "usr/share" || rel == "var" || rel == "debootstrap" || rel == "dev"
	}); err != nil {
		return err
	}
	t.layer("debian's data")
	return t.addAll(ctx, filepath.Join(root, "usr/share"), "usr/share", all, nothing)
}

// group makes cmd and what it starts end together when its context ends.
func group(cmd *exec.Cmd) *exec.Cmd {
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	cmd.SysProcAttr.Setpgid = true
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = 5 * time.Second
	return cmd
}

package main

import (
	"bytes"
	"context"
	"fmt"
	"io/fs"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// debootstrapTime is how long debootstrap may take; some 30 s are usual, so it
// has to be asked for.
const debootstrapTime = 2 * time.Minute

// debian makes the layers of the root filesystem that debootstrap unpacks. It is
// not configured, for which there is no time, but bash and perl run in it.
func (d *demo) debian(ctx context.Context, t *tree) error {
	root := filepath.Join(d.work, "debian")
	limited, cancel := context.WithTimeout(ctx, debootstrapTime)
	defer cancel()
	if err := d.say("$ debootstrap --foreign --variant=minbase stable %s", root); err != nil {
		return err
	}
	cmd := group(exec.CommandContext(limited, "debootstrap", "--foreign", "--variant=minbase", "stable", root))
	out, err := cmd.CombinedOutput()
	if limited.Err() != nil {
		return fmt.Errorf("debootstrap: %w", limited.Err())
	}
	if err != nil {
		lines := strings.Split(strings.TrimSpace(string(bytes.ToValidUTF8(out, nil))), "\n")
		return fmt.Errorf("debootstrap: %w: %s", err, lines[len(lines)-1])
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

package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/lacunafs/lacuna/test/instance"
)

// plain has the instance's commands log as they do for a person.
func (i *lacuna) plain() {
	i.Extra = append(i.Extra, "--log-format", "text")
}

// foregroundVerbs are the commands that serve a file by themselves.
var foregroundVerbs = map[string]func(t *testing.T, a *attached) (args []string){
	"attach": func(_ *testing.T, a *attached) []string { return []string{"attach", a.server.URL(), a.file} },
	"mount": func(t *testing.T, a *attached) []string {
		list, err := json.Marshal([]map[string]any{{"path": "file", "url": a.server.URL(), "size": attachedSize}})
		name, dir := filepath.Join(a.Dir, "files.json"), filepath.Join(a.Dir, "mnt")
		if err := errors.Join(err, os.WriteFile(name, list, 0o600)); err != nil {
			t.Fatal(err)
		}
		a.file = filepath.Join(dir, "file")
		return []string{"mount", "--manifest", name, dir}
	},
}

// A command in the foreground that is stopped while somebody reads on says once who
// that is, serves them, and ends well when they are done.
func TestForegroundSaysWhatItWaitsFor(t *testing.T) {
	for verb, args := range foregroundVerbs {
		for _, sig := range []syscall.Signal{syscall.SIGINT, syscall.SIGTERM} {
			t.Run(verb+" "+sig.String(), func(t *testing.T) {
				a := newAttached(t, "")
				a.plain()
				what := args(t, a)
				a.StartForeground(what...)
				h := hold(t, a.file)
				h.wantPattern(stormSeed, 1<<20, 10000)
				pids := []int{a.Keeper.Process.Pid}
				if sig == syscall.SIGINT { // as a terminal does it: all get it
					pids = instance.ProcessesOf(a.Dir)
				}
				for _, pid := range pids {
					if err := syscall.Kill(pid, sig); err != nil {
						t.Fatal(err)
					}
				}
				a.waitBusy()
				h.wantPattern(stormSeed, 3<<20, 10000)
				h.close()
				a.WaitEnd(0)
				want := fmt.Sprintf("note: waiting for what is in use: %s, used by process %d (e2e.test)", what[len(what)-1], h.cmd.Process.Pid)
				if got := notesOf(a.Log.String()); !slices.Equal(got, []string{want, waitHint}) {
					t.Errorf("it says\n%s\nnot %s\n%s", strings.Join(got, "\n"), want, waitHint)
				}
				a.wantGone()
			})
		}
	}
}

const waitHint = "hint: `lacuna status` tells who is left; after a second signal it waits for nobody, and what is missing gives errors"

// notesOf are the lines of a log but for the one that every manifest without
// digests has.
func notesOf(log string) (lines []string) {
	for line := range strings.Lines(log) {
		if !strings.Contains(line, " no sha256: ") {
			lines = append(lines, strings.TrimSuffix(line, "\n"))
		}
	}
	return lines
}

// Asked twice it waits for nobody, and says once what is denied from then on.
func TestForegroundSaysWhatItDenies(t *testing.T) {
	for verb, args := range foregroundVerbs {
		t.Run(verb, func(t *testing.T) {
			a := newAttached(t, "")
			a.plain()
			what := args(t, a)
			a.StartForeground(what...)
			h := hold(t, a.file)
			worker := a.WaitWorker(0)
			a.Signal(syscall.SIGINT)
			a.waitBusy()
			a.Signal(syscall.SIGINT)
			instance.Eventually(t, 30*time.Second, func() error {
				if instance.IsRunning(worker) {
					return errors.New("the worker runs")
				}
				return nil
			})
			if r := h.read(3<<20, 10000); r.Errno != syscall.EIO {
				t.Errorf("read of missing data: %v", r.Errno)
			}
			instance.Pause(2500 * time.Millisecond) // the keeper tries each second
			h.close()
			<-a.Ended
			log := notesOf(a.Log.String())
			users := fmt.Sprintf("%s: process %d (e2e.test)", what[len(what)-1], h.cmd.Process.Pid)
			want := []string{
				fmt.Sprintf("note: waiting for what is in use: %s, used by process %d (e2e.test)", what[len(what)-1], h.cmd.Process.Pid),
				waitHint,
				"lacuna: still in use: " + users + ": missing data is denied until that ends",
				"error: undoing what the worker left: still in use: " + users,
			}
			if !slices.Equal(log, want) {
				t.Errorf("it says\n%s\nnot\n%s", strings.Join(log, "\n"), strings.Join(want, "\n"))
			}
			a.wantGone()
		})
	}
}

// The terminal is closed while somebody reads on: they are served, and then it ends.
func TestTerminalClosedWhileInUse(t *testing.T) {
	for verb, args := range foregroundVerbs {
		t.Run(verb, func(t *testing.T) {
			a := newAttached(t, "")
			a.plain()
			master, terminal := openTerminal(t)
			a.Terminal = terminal
			a.Start(args(t, a)...)
			if err := terminal.Close(); err != nil {
				t.Fatal(err)
			}
			a.WaitReady()
			instance.Eventually(t, 20*time.Second, func() error {
				if st, err := os.Stat(a.file); err != nil || st.Size() != attachedSize {
					return fmt.Errorf("it is not there yet: %w", err)
				}
				return nil
			})
			h := hold(t, a.file)
			h.wantPattern(stormSeed, 1<<20, 10000)
			if err := master.Close(); err != nil {
				t.Fatal(err)
			}
			instance.Eventually(t, 20*time.Second, func() error {
				if _, err := a.Try("attach", a.server.URL(), filepath.Join(a.Dir, "other")); err == nil || !strings.Contains(err.Error(), "stopping") {
					return fmt.Errorf("it does not stop: %w", err)
				}
				return nil
			})
			h.wantPattern(stormSeed, 3<<20, 10000)
			h.close()
			a.WaitEnd(0)
			a.wantGone()
		})
	}
}

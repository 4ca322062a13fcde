package keeper

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"syscall"

	"github.com/lacunafs/lacuna/internal/sys"
)

// stateVersion is the version of state that this program reads and writes.
const stateVersion = 1

// maxState bounds the encoded state: 64 Ki descriptors with the longest names fit.
const maxState = 32 << 20

// state is what a keeper passes to the program that goes on in its place, as
// JSON in an inherited memfd. Descriptors are numbers in the inheriting process.
type state struct {
	Version int    `json:"version"`
	Address string `json:"address"`
	Socket  int    `json:"socket"`
	// Worker is 0 where none runs; Process is its pidfd then, too.
	Worker  int  `json:"worker"`
	Process int  `json:"process"`
	Child   bool `json:"child"`
	// HandOver: the worker is to be replaced.
	HandOver bool `json:"hand_over"`
	// Ready: the running worker is. EverReady: some worker was.
	Ready     bool        `json:"ready"`
	Stopping  bool        `json:"stopping"`
	EverReady bool        `json:"ever_ready"`
	Deaths    Deaths      `json:"deaths"`
	Held      []stateHeld `json:"held"`
}

type stateHeld struct {
	Name string `json:"name"`
	FD   int    `json:"fd"`
}

// write puts the state into a memfd.
func (st state) write() (*sys.FD, error) {
	b, err := json.Marshal(st)
	if err != nil {
		return nil, fmt.Errorf("encode the keeper's state: %w", err)
	}
	fd, err := sys.Memfd("lacuna-keeper", 0)
	if err != nil {
		return nil, err
	}
	for off := 0; off < len(b); {
		n, err := syscall.Pwrite(fd.Int(), b[off:], int64(off))
		if err != nil {
			return nil, errors.Join(fmt.Errorf("write the keeper's state: %w", err), fd.Close())
		}
		off += n
	}
	return fd, nil
}

// readState reads the memfd that value, the value of EnvState, is the number
// of, closes it, and makes all that it names close-on-exec.
func readState(value string) (st state, err error) {
	raw, err := strconv.Atoi(value)
	if err != nil || raw < 3 || !sys.IsOpen(raw) {
		return st, fmt.Errorf("read the keeper's state: %s=%q is not an open descriptor", EnvState, value)
	}
	// The offset is shared with whoever wrote it, so it is not relied upon.
	f := os.NewFile(uintptr(raw), "lacuna-keeper")
	b, err := io.ReadAll(io.NewSectionReader(f, 0, maxState))
	if err := errors.Join(err, f.Close()); err != nil {
		return st, fmt.Errorf("read the keeper's state: %w", err)
	}
	if err := json.Unmarshal(b, &st); err != nil {
		return st, fmt.Errorf("decode the keeper's state: %w", err)
	}
	return st, st.adopt()
}

// adopt checks the state and claims its descriptors.
func (st *state) adopt() error {
	if st.Version != stateVersion {
		return fmt.Errorf("keeper's state has version %d, this program reads %d", st.Version, stateVersion)
	}
	for _, raw := range st.numbers() {
		if raw < 3 {
			return fmt.Errorf("keeper's state names descriptor %d", raw)
		}
		if err := sys.SetInherit(raw, false); err != nil {
			return fmt.Errorf("adopt what the keeper held: %w", err)
		}
	}
	return nil
}

// numbers are all descriptors that the state names.
func (st *state) numbers() []int {
	out := []int{st.Socket}
	if st.Worker != 0 {
		out = append(out, st.Process)
	}
	for _, h := range st.Held {
		out = append(out, h.FD)
	}
	return out
}

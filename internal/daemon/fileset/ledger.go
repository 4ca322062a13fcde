package fileset

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sync"

	"github.com/lacunafs/lacuna/internal/daemon/durable"
	"github.com/lacunafs/lacuna/internal/ondemand"
	"github.com/lacunafs/lacuna/internal/source"
)

// state is what is known of the source of a part.
type state struct {
	// Part is its index in the device.
	Part int `json:"part"`
	// Bound: the bytes that are present are of the version Validator.
	Bound     bool   `json:"bound,omitempty"`
	Validator string `json:"validator,omitempty"`
	// Source is the digest of the URL that has that version.
	Source string `json:"source,omitempty"`
	// Sequential: the source can be read only from its start.
	Sequential bool `json:"sequential,omitempty"`
	// Verified: all of it was present, and had its digest.
	Verified bool `json:"verified,omitempty"`
	// Changed: the source has another version now. Wrong: all of it was present,
	// and did not have its digest.
	Changed bool `json:"changed,omitempty"`
	Wrong   bool `json:"wrong,omitempty"`
}

func (s *state) identity(size int64) source.Identity {
	return source.Identity{Size: size, Validator: s.Validator}
}

// ledger keeps the states of a device's parts. It is a file of lines, each of
// which replaces what was said of its part before:
//
//	<CRC-32C of the JSON, 8 hexadecimal digits> <JSON>
//
// A line is written before a byte of the part is, and is not made durable by
// itself: after a loss of power the end may be missing. A part that has bytes and no
// line is not known to be of one version, and counts as missing.
type ledger struct {
	mu   sync.Mutex
	file *os.File
	size int64
	// broken: a line could not be taken back. Nothing more is written.
	broken error
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// ledgerName is the path of the ledger of a device's object.
func (l *Library) ledgerName(id ondemand.ObjectID) string {
	return filepath.Join(l.dir, string(id)+partsSuffix)
}

// partsSuffix is how the name of a ledger ends.
const partsSuffix = ".parts"

// readLedger returns the states of n parts, and the length of what is sound of the file.
func readLedger(name string, n int) ([]state, int64, error) {
	states := make([]state, n)
	for i := range states {
		states[i].Part = i
	}
	b, err := os.ReadFile(name)
	if errors.Is(err, fs.ErrNotExist) {
		return states, 0, nil
	}
	if err != nil {
		return nil, 0, fmt.Errorf("read what is known of the sources: %w", err)
	}
	sound := int64(0)
	for {
		line, rest, whole := bytes.Cut(b, []byte{'\n'})
		s, ok := decodeLine(line)
		if !whole || !ok || s.Part < 0 || s.Part >= n {
			return states, sound, nil
		}
		states[s.Part] = s
		sound += int64(len(line)) + 1
		b = rest
	}
}

func decodeLine(line []byte) (s state, ok bool) {
	sum, text, found := bytes.Cut(line, []byte{' '})
	if !found || string(sum) != fmt.Sprintf("%08x", crc32.Checksum(text, castagnoli)) {
		return s, false
	}
	return s, json.Unmarshal(text, &s) == nil
}

func (s *state) encode() ([]byte, error) {
	text, err := json.Marshal(s)
	if err != nil {
		return nil, err
	}
	return fmt.Appendf(nil, "%08x %s\n", crc32.Checksum(text, castagnoli), text), nil
}

// openLedger opens the file for the lines behind the first size bytes.
func openLedger(name string, size int64) (*ledger, error) {
	f, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open what is known of the sources: %w", err)
	}
	if err := f.Truncate(size); err != nil {
		return nil, errors.Join(fmt.Errorf("open what is known of the sources: %w", err), f.Close())
	}
	return &ledger{file: f, size: size}, nil
}

// rewriteLedger replaces the file, durably, by one with these states.
func rewriteLedger(name string, states []state) error {
	return durable.Replace(name, func(w io.Writer) error {
		for i := range states {
			if states[i] == (state{Part: i}) {
				continue
			}
			line, err := states[i].encode()
			if err != nil {
				return err
			}
			if _, err := w.Write(line); err != nil {
				return err
			}
		}
		return nil
	})
}

// write adds a line.
func (l *ledger) write(s state) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.broken != nil {
		return l.broken
	}
	line, err := s.encode()
	if err == nil {
		_, err = l.file.WriteAt(line, l.size)
	}
	if err != nil {
		err = fmt.Errorf("note what is known of a source: %w", err)
		if terr := l.file.Truncate(l.size); terr != nil {
			l.broken = errors.Join(err, terr)
		}
		return err
	}
	l.size += int64(len(line))
	return nil
}

// sync makes all lines durable.
func (l *ledger) sync() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.file.Sync()
}

func (l *ledger) close() error { return l.file.Close() }

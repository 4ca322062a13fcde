package prepare

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
)

var (
	// ErrDamaged: a file is not what was written.
	ErrDamaged = errors.New("damaged")
	// errOld: a file is of an earlier version, which this program does not use.
	errOld = errors.New("of an earlier version")
)

// sealed is the form of the files of JSON.
type sealed struct {
	Version int `json:"version"`
	// Sum is the SHA-256 of Content as it stands there.
	Sum     string          `json:"sum"`
	Content json.RawMessage `json:"content"`
}

// seal writes v with its checksum.
func seal(w io.Writer, v any) error {
	content, err := json.Marshal(v)
	if err != nil {
		return err
	}
	sum := sha256.Sum256(content)
	b, err := json.Marshal(sealed{planVersion, hex.EncodeToString(sum[:]), content})
	if err != nil {
		return err
	}
	_, err = w.Write(append(b, '\n'))
	return err
}

// unseal reads into v what seal wrote: ErrDamaged where it is something else.
func unseal(name string, v any) error {
	b, err := os.ReadFile(name)
	if err != nil {
		return err
	}
	var s sealed
	if err := json.Unmarshal(b, &s); err != nil {
		return fmt.Errorf("%s: %w: %w", filepath.Base(name), ErrDamaged, err)
	}
	sum := sha256.Sum256(s.Content)
	switch {
	case s.Version > planVersion:
		return fmt.Errorf("%s: version %d, this program knows %d", filepath.Base(name), s.Version, planVersion)
	case s.Version < planVersion:
		return fmt.Errorf("%s: version %d: %w", filepath.Base(name), s.Version, errOld)
	case hex.EncodeToString(sum[:]) != s.Sum:
		return fmt.Errorf("%s: %w", filepath.Base(name), ErrDamaged)
	}
	return json.Unmarshal(s.Content, v)
}

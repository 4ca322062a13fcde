package prepare

import (
	"crypto/sha256"
	"fmt"
	"io"
	"path/filepath"
)

// askedDir is where it is kept what names meant.
const askedDir = "asked"

// meaning is which image was found last for what was asked.
type meaning struct {
	Asked Asked  `json:"asked"`
	Key   string `json:"key"`
}

func askedPath(dir string, asked Asked) string {
	what := fmt.Appendf(nil, "%q %q", asked.Ref, asked.Platform)
	if asked.Hosts != "" {
		what = fmt.Appendf(what, " %q", asked.Hosts)
	}
	if asked.Format != "" {
		what = fmt.Appendf(what, " as %q", asked.Format)
	}
	sum := sha256.Sum256(what)
	return filepath.Join(dir, askedDir, fmt.Sprintf("%x.json", sum[:16]))
}

// last returns the plan that was prepared last for what is asked; an error that
// wraps fs.ErrNotExist where there is none.
func (l *Library) last(asked Asked) (*Plan, error) {
	var m meaning
	if err := unseal(askedPath(l.dir, asked), &m); err != nil {
		return nil, fmt.Errorf("find what %s meant last: %w", asked.Ref, err)
	}
	if m.Asked != asked {
		return nil, fmt.Errorf("find what %s meant last: it is of %s: %w", asked.Ref, m.Asked.Ref, ErrDamaged)
	}
	return l.Load(m.Key)
}

// remember has last return the plan of that key.
func (l *Library) remember(asked Asked, key string) error {
	return replace(askedPath(l.dir, asked), func(w io.Writer) error { return seal(w, meaning{asked, key}) })
}

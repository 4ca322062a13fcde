package cache

import (
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"

	"github.com/lacunafs/lacuna/internal/ondemand"
)

// pageState is where the newest valid version of a page is on disk.
type pageState struct {
	newest int // slot 0 or 1
	seq    uint64
}

// saved is the presence of one object as its presence file records it: what
// has been durable in the data file, never more.
//
// The caller serialises all use, except of durable, which may be read at any time.
type saved struct {
	file    file
	head    header
	durable *ondemand.Presence
	pages   map[int64]pageState // pages that have a valid slot
	// dirty are the pages that are on disk otherwise than in durable: true
	// where blocks were forgotten, so that both slots must be written.
	dirty map[int64]bool
	// torn says what is wrong with slots that could not be used.
	torn []BadSlot
}

// BadSlot is a place of the presence file that holds no valid page.
type BadSlot struct {
	Page   int64  `json:"page"`
	Slot   int    `json:"slot"` // 0 or 1
	Reason string `json:"reason"`
}

// readAttempts is how often a slot is read that looks damaged: a reader beside
// a running daemon may meet it half written.
const readAttempts = 3

// errOther says that the presence file is not one of this data file.
type errOther struct{ reason string }

func (e errOther) Error() string { return e.reason }

// emptySaved is the record of an object of which nothing is present.
func emptySaved(f file, h header) *saved {
	return &saved{
		file: f, head: h, durable: ondemand.NewPresence(h.size),
		pages: map[int64]pageState{}, dirty: map[int64]bool{},
	}
}

// loadSaved reads a presence file. want is the header that the object calls
// for, without the epoch. errOther where the file's header is another one or
// damaged; *VersionError where a later version wrote it.
func loadSaved(f file, want header) (*saved, error) {
	h, err := loadHeader(f)
	if err != nil {
		return nil, err
	}
	want.epoch = h.epoch
	switch {
	case h.key != want.key:
		return nil, errOther{"the presence file is of another object"}
	case h.size != want.size:
		return nil, errOther{fmt.Sprintf("the presence file is of an object of %d bytes", h.size)}
	case h.inode != want.inode || h.birth != want.birth:
		return nil, errOther{"the data file is not the one that the presence file was made for"}
	}
	s := emptySaved(f, h)
	return s, s.loadPages()
}

func loadHeader(f file) (header, error) {
	b := make([]byte, slotSize)
	var err error
	for range readAttempts {
		if _, err = f.ReadAt(b, 0); errors.Is(err, io.EOF) {
			err = errOther{"the presence file is cut off"}
			continue
		} else if err != nil {
			return header{}, fmt.Errorf("read presence header: %w", err)
		}
		var h header
		if h, err = parseHeader(b); err == nil {
			return h, nil
		}
	}
	var newer *VersionError
	var other errOther
	if errors.As(err, &newer) || errors.As(err, &other) {
		return header{}, err
	}
	return header{}, errOther{"presence header: " + err.Error()}
}

// loadPages reads the slots that have anything on disk.
func (s *saved) loadPages() error {
	end := slotOffset(pageCount(s.head.size), 0)
	next := func(off int64) (int64, error) { return off, nil }
	if l, ok := s.file.(layout); ok {
		next = l.NextData
	}
	page := int64(0)
	for off := slotOffset(0, 0); off < end; off = slotOffset(page, 0) {
		data, err := next(off)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("read presence: %w", err)
		}
		if data >= end {
			return nil
		}
		page = (data - slotSize) / (2 * slotSize)
		s.loadPage(page)
		page++
	}
	return nil
}

// loadPage takes the newer valid slot of a page. Where the older one claims
// blocks that the newer does not, a forget was cut off between its two rounds:
// save does it again.
func (s *saved) loadPage(page int64) {
	var best, older *slot
	for which := range 2 {
		v, err := s.loadSlot(page, which)
		switch {
		case err != nil:
			s.torn = append(s.torn, BadSlot{Page: page, Slot: which, Reason: err.Error()})
		case v == nil:
		case best == nil || v.seq > best.seq:
			best, older = v, best
			s.pages[page] = pageState{newest: which, seq: v.seq}
		case v.seq == best.seq:
			// Nothing writes such a pair; neither can be trusted to be the newer.
			s.torn = append(s.torn, BadSlot{Page: page, Slot: which, Reason: "both slots have one sequence number"})
			delete(s.pages, page)
			return
		default:
			older = v
		}
	}
	if older != nil && older.claimsBeyond(best) {
		s.dirty[page] = true
	}
	if best == nil {
		return
	}
	r := pageRange(page, s.head.size)
	best.runs(func(first, last int64) {
		run := ondemand.Range{Off: r.Off + first*ondemand.BlockSize, Len: (last - first) * ondemand.BlockSize}
		s.durable.Set(run.Intersect(r))
	})
}

// loadSlot reads one slot: nil where nothing was ever written.
func (s *saved) loadSlot(page int64, which int) (*slot, error) {
	b := make([]byte, slotSize)
	var bad error
	for range readAttempts {
		n, err := s.file.ReadAt(b, slotOffset(page, which))
		if err != nil && !errors.Is(err, io.EOF) {
			return nil, err
		}
		clear(b[n:])
		if allZero(b) {
			return nil, nil
		}
		v, err := parseSlot(b, s.head, page)
		if err == nil {
			return v, nil
		}
		bad = err
	}
	return nil, bad
}

// record notes that the data of r is durable. save brings it to disk.
func (s *saved) record(r ondemand.Range) {
	s.durable.Set(r)
	s.touch(r, false)
}

// forget notes that r is missing. Until save has returned nil, disk may still
// claim it, and it must not be written.
func (s *saved) forget(r ondemand.Range) {
	for _, p := range s.durable.Present(r) {
		s.durable.Clear(p)
		s.touch(p, true)
	}
}

func (s *saved) touch(r ondemand.Range, both bool) {
	if r.Empty() {
		return
	}
	for page := r.Off / pageBytes; page*pageBytes < r.End(); page++ {
		s.dirty[page] = s.dirty[page] || both
	}
}

// claimsForgotten tells whether disk may claim blocks that are missing.
func (s *saved) claimsForgotten() bool {
	for _, both := range s.dirty {
		if both {
			return true
		}
	}
	return false
}

// save makes the presence file say what durable says.
func (s *saved) save() error {
	if len(s.dirty) == 0 {
		return nil
	}
	if err := s.saveRound(slices.Sorted(maps.Keys(s.dirty))); err != nil {
		return err
	}
	// The second slot of these pages still claims what was forgotten.
	var again []int64
	for page, both := range s.dirty {
		if both {
			again = append(again, page)
		}
	}
	slices.Sort(again)
	if err := s.saveRound(again); err != nil {
		return err
	}
	clear(s.dirty)
	return nil
}

// saveRound writes each page once, into the slot that is not the newest valid
// one, and syncs. Only then are the slots written the newest.
func (s *saved) saveRound(pages []int64) error {
	if len(pages) == 0 {
		return nil
	}
	written := make(map[int64]pageState, len(pages))
	for _, page := range pages {
		old, ok := s.pages[page]
		state := pageState{newest: 1 - old.newest, seq: old.seq + 1}
		if !ok {
			state.newest = 0
		}
		b := s.slotOf(page, state.seq).encode()
		if err := writeAll(s.file, b, slotOffset(page, state.newest)); err != nil {
			return fmt.Errorf("write presence page %d: %w", page, err)
		}
		written[page] = state
	}
	if err := s.file.Datasync(); err != nil {
		return fmt.Errorf("sync presence: %w", err)
	}
	maps.Copy(s.pages, written)
	return nil
}

func (s *saved) slotOf(page int64, seq uint64) *slot {
	v := &slot{key: s.head.key, epoch: s.head.epoch, page: page, seq: seq}
	r := pageRange(page, s.head.size)
	for _, p := range s.durable.Present(r) {
		v.set((p.Off-r.Off)/ondemand.BlockSize, ondemand.BlockCount(p.End()-r.Off))
	}
	return v
}

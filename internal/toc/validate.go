package toc

import "fmt"

// Validate tells whether t is what a Builder finishes: every entry right by
// itself, no name twice, nothing below what is not a directory, hard links to no
// hard link before them and no directory, compressed ranges within the blob.
func (t *TOC) Validate() error {
	if err := t.checkEach(true); err != nil {
		return err
	}
	tree := newTree(len(t.Entries))
	for i := range t.Entries {
		if err := tree.add(int32(i), t.Entries); err != nil {
			return err
		}
	}
	for i := range t.Entries {
		e := &t.Entries[i]
		if e.Type != Hardlink {
			continue
		}
		j := int(tree.find(e.Link))
		if j >= 0 && (t.Entries[j].Type == Hardlink && j < i || t.Entries[j].Type == Directory) {
			return fmt.Errorf("hard link %s to the %s %s: %w", quote(e.Name), t.Entries[j].Type, quote(e.Link), ErrInvalid)
		}
	}
	return nil
}

// checkEach checks all that does not concern how names lie to each other.
func (t *TOC) checkEach(digests bool) error {
	if len(t.Entries) > MaxEntries {
		return fmt.Errorf("%d entries: %w", len(t.Entries), ErrLimit)
	}
	for i := range t.Entries {
		e := &t.Entries[i]
		if err := checkEntry(e, digests); err != nil {
			return err
		}
		if err := checkClean(e); err != nil {
			return err
		}
	}
	return checkBlob(t)
}

// add puts entry i in its place, where nothing may be yet.
func (t *tree) add(i int32, entries []Entry) error {
	e := &entries[i]
	if e.Type == Replaced {
		return nil
	}
	n, err := t.placeOf(e, entries)
	if err != nil {
		return err
	}
	nd := &t.nodes[n]
	var mark uint8
	switch e.Type {
	case Whiteout:
		mark = markWhiteout
	case Opaque:
		mark = markOpaque
	default:
		if nd.entry >= 0 || (e.Type != Directory && nd.inside) {
			return fmt.Errorf("two entries for %s or below: %w", quote(e.Name), ErrInvalid)
		}
		t.set(n, i, entries)
		return nil
	}
	if nd.marks&mark != 0 {
		return fmt.Errorf("%s %s twice: %w", e.Type, quote(e.Name), ErrInvalid)
	}
	nd.marks |= mark
	return nil
}

// checkClean says whether the names of e are ones that a Builder lets through.
func checkClean(e *Entry) error {
	clean, err := e.Name == "" || isClean(e.Name), error(nil)
	if e.Type != Whiteout && e.Type != Opaque && clean {
		var t Type
		var private bool
		t, _, private, err = whiteout(e.Name)
		clean = err == nil && t == 0 && !private
	}
	if e.Type == Hardlink {
		clean = clean && isClean(e.Link)
	}
	if e.Type == Replaced && !e.HoldsPlace() {
		return fmt.Errorf("%s without a place: %w", e.Type, ErrInvalid)
	}
	if (e.Type >= Whiteout || e.Type == Hardlink) && !e.bare() {
		return fmt.Errorf("%s %s has metadata: %w", e.Type, quote(e.Name), ErrInvalid)
	}
	if !clean {
		return fmt.Errorf("name %s is not clean: %w", quote(e.Name), ErrInvalid)
	}
	return nil
}

// bare tells whether an entry has no metadata.
func (e *Entry) bare() bool {
	return e.Mode|e.UID|e.GID|e.Nsec == 0 && e.Sec == 0 && len(e.Xattrs) == 0
}

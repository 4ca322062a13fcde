package devnode

import (
	"testing"

	"github.com/lacunafs/lacuna/devnode"
	"github.com/lacunafs/lacuna/internal/ondemand/devnode/proto"
)

func TestRequestIsHandedOutFilledAndDone(t *testing.T) {
	b := serve(t, map[string]int{"blob": 10000})
	c := b.bind(t)
	fill := b.miss(t, "blob", 4096, 4096)
	r := c.record()
	if want := (proto.Record{ID: 1, Off: 4096, Len: 4096, Path: "blob"}); r != want {
		t.Fatalf("record %+v, want %+v", r, want)
	}
	b.pour(t, r)
	c.say("done %d", r.ID)
	check(t, result(t, fill))
	b.same(t, "blob", 4096, 4096)
	if o := b.object(t, "blob"); o.Present() != 4096 || o.Complete() {
		t.Fatalf("%d bytes present", o.Present())
	}
	if st := b.Status(); st.Counters != (Counters{HandedOut: 1, Done: 1}) || st.Tag != "test" || !st.Bound {
		t.Fatalf("status %+v", st)
	}
}

func TestClientServes(t *testing.T) {
	b := serve(t, map[string]int{"blob": 10000})
	c, err := devnode.Dial(b.socket)
	check(t, err)
	defer c.Close()
	check(t, c.Bind(b.dir, "client"))
	fill := b.miss(t, "blob", 8192, 1808)
	req, err := c.Next(t.Context())
	check(t, err)
	f, err := c.File(req.ID)
	check(t, err)
	defer f.Close()
	_, err = f.WriteAt(content("blob", 10000)[req.Off:], req.Off)
	check(t, err)
	check(t, c.Done(req.ID))
	check(t, result(t, fill))
	b.same(t, "blob", 8192, 1808)
}

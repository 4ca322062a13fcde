package control

import (
	"context"
	"fmt"
	"net"
	"testing"
	"time"
)

// A client that asks for a hydrate and reads nothing of its progress holds up
// neither the hydrate nor other commands.
func TestClientThatDoesNotReadProgressHoldsUpNobody(t *testing.T) {
	const steps = 200_000 // far more than a socket holds
	done := make(chan struct{})
	client, socket := serve(t, handlers{
		hydrate: func(_ context.Context, _ HydrateRequest, progress func(Progress)) error {
			defer close(done)
			for n := range int64(steps) {
				progress(Progress{n, steps})
			}
			return nil
		},
		status: func(context.Context) (Status, error) { return Status{Version: "v"}, nil },
	})
	conn, err := net.Dial("unix", socket)
	ok(t, err)
	body := `{"file":"/f"}`
	_, err = fmt.Fprintf(conn, "POST /v1/hydrate HTTP/1.1\r\nHost: lacuna\r\nContent-Length: %d\r\n\r\n%s", len(body), body)
	ok(t, err)
	select {
	case <-done:
	case <-time.After(20 * time.Second):
		t.Error("the hydrate waits for its client")
	}
	if s, err := client.Status(t.Context()); err != nil || s.Version != "v" {
		t.Errorf("status meanwhile: %+v, %v", s, err)
	}
	ok(t, conn.Close())
}

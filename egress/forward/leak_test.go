package forward_test

import (
	"fmt"
	"io"
	"net/http"
	"testing"
	"time"

	"accessbroker.internal/egress/egresstest"
)

// All answers of a hostile host end, however they are divided and coded.
func TestHostileAnswersEnd(t *testing.T) {
	for _, h2 := range []bool{false, true} {
		t.Run(fmt.Sprint("HTTP/2 ", h2), func(t *testing.T) {
			k := newEdge(t, &egresstest.Upstream{}, h2)
			k.through.Timeout = 30 * time.Second
			for i := range 500 {
				r, err := http.NewRequest(http.MethodGet, fmt.Sprintf("%s/x?seed=%d", k.host.URL, i), nil)
				if err != nil {
					t.Fatal(err)
				}
				if i%3 > 0 {
					r.Header.Set("Accept-Encoding", "gzip")
				}
				resp, err := k.through.Do(r)
				if err != nil {
					t.Fatalf("call %d: %v", i, err)
				}
				if n, err := io.Copy(io.Discard, resp.Body); err != nil {
					t.Fatalf("call %d: %v after %d bytes of %v", i, err, n, resp.Header)
				}
				_ = resp.Body.Close()
			}
		})
	}
}

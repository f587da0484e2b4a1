package egress_test

import (
	"fmt"
	"net/http"
	"strings"
	"testing"

	"accessbroker.internal/egress"
)

func TestCallCarriesTheCredentialAndItsAnswerDoesNot(t *testing.T) {
	w := newWorld(t, http.HandlerFunc(func(out http.ResponseWriter, r *http.Request) {
		out.Header().Set("X-Seen", r.Header.Get("Authorization"))
		fmt.Fprintf(out, "%s %s with %s", r.Method, r.RequestURI, r.Header.Get("Authorization"))
	}), nil)
	resp, body, err := w.call("GET", w.host.URL+"/v1/widgets?page=2", "", nil)
	if err != nil {
		t.Fatal(err)
	}
	hidden := strings.Repeat("*", len(token))
	if want := "GET /v1/widgets?page=2 with Bearer " + hidden; body != want {
		t.Errorf("got the body %q, want %q", body, want)
	}
	if got := resp.Header.Get("X-Seen"); got != "Bearer "+hidden {
		t.Errorf("got the header %q", got)
	}
	if len(w.outcomes) != 1 || w.outcomes[0].Outcome != egress.OutcomeMade || w.outcomes[0].Lease != "lse_widgets" || w.outcomes[0].Status != 200 {
		t.Errorf("got the outcomes %+v", w.outcomes)
	}
}

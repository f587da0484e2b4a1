package attest_test

import (
	"strings"
	"testing"
	"time"
)

// A provider may state the end of a person's access in several forms. An end that cannot be
// read keeps the person out: it must not become access without end.
func TestClaimedEnds(t *testing.T) {
	t.Parallel()
	at := time.Date(2026, 12, 31, 18, 0, 0, 0, time.UTC)
	for _, test := range []struct {
		name  string
		claim any
		want  time.Time
		fails bool
	}{
		{"a NumericDate", at.Unix(), at, false},
		{"a time", "2026-12-31T19:00:00+01:00", at, false},
		{"a day", "2026-12-31", time.Date(2027, 1, 1, 0, 0, 0, 0, time.UTC), false},
		{"none", nil, time.Time{}, false},
		{"an empty text", "", time.Time{}, false},
		{"another form", "31.12.2026", time.Time{}, true},
		{"a list", []string{"2026-12-31"}, time.Time{}, true},
		{"true", true, time.Time{}, true},
		{"a negative number", -1, time.Time{}, true},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			p := newProvider(t)
			p.claims["ends"], p.claims["sponsor"] = test.claim, "ben"
			in, err := p.login(false, nil)
			if test.fails {
				if err == nil || !strings.Contains(err.Error(), `"ends"`) {
					t.Errorf("got %v, want an error about the claim", err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if who := in.Who.Person; !who.Ends.Equal(test.want) || !who.StatesEnd || who.Sponsor != "login/ben" {
				t.Errorf("got %v by %q, want %v", who.Ends, who.Sponsor, test.want)
			}
		})
	}
}

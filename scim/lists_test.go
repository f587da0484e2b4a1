package scim

import (
	"context"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"

	"accessbroker.internal/broker"
	"accessbroker.internal/broker/directory"
)

type noStore struct{ broker.Store }

// provisioned returns a handler for a source with groups that all have the same members.
func provisioned(t *testing.T, groups, members int) *Handler {
	t.Helper()
	rows := func(_ context.Context, f func(broker.Row) error) error {
		now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
		var ids []broker.DirectoryUserID
		for range members {
			u := &broker.DirectoryUser{ID: broker.NewDirectoryUserID(now), Source: "corp", Version: 1}
			u.UserName, ids = u.ID.String(), append(ids, u.ID)
			if err := f(u); err != nil {
				return err
			}
		}
		for range groups {
			g := &broker.DirectoryGroup{ID: broker.NewDirectoryGroupID(now), Source: "corp", Version: 1}
			g.Name = g.ID.String()
			if err := f(g); err != nil {
				return err
			}
			for _, u := range ids {
				if err := f(&broker.DirectoryMember{DirectoryMemberKey: broker.DirectoryMemberKey{Group: g.ID, User: u}}); err != nil {
					return err
				}
			}
		}
		return nil
	}
	d, err := directory.Open(t.Context(), directory.Config{Store: noStore{}, Rows: rows, Sources: []directory.Source{{Name: "corp", Provider: "login"}}})
	if err != nil {
		t.Fatal(err)
	}
	subject, err := ParseSubject("externalId")
	if err != nil {
		t.Fatal(err)
	}
	h, err := NewHandler(Config{Directory: d, URL: "https://broker.acme.test", Subjects: map[string]Subject{"corp": subject}, Caller: func(*http.Request) (broker.Caller, string, error) {
		return broker.Caller{}, "corp", nil
	}})
	if err != nil {
		t.Fatal(err)
	}
	return h
}

func listGroups(ctx context.Context, h *Handler, filter string) *httptest.ResponseRecorder {
	w := httptest.NewRecorder()
	r := httptest.NewRequestWithContext(ctx, http.MethodGet, Path+"Groups?attributes=id&filter="+url.QueryEscape(filter), nil)
	h.ServeHTTP(w, r)
	return w
}

// A filter by members reads the members of a group once, however often it names them.
func TestFilterReadsMembersOnce(t *testing.T) {
	h := provisioned(t, 20, 200)
	one := testing.AllocsPerRun(1, func() { listGroups(t.Context(), h, `members.value eq "x"`) })
	many := testing.AllocsPerRun(1, func() {
		listGroups(t.Context(), h, strings.Repeat(`members.value eq "x" or `, maxTerms-1)+`members.value eq "x"`)
	})
	if w := listGroups(t.Context(), h, `members pr`); w.Code != http.StatusOK || !strings.Contains(w.Body.String(), `"totalResults":20`) {
		t.Fatalf("got %d %s", w.Code, w.Body)
	}
	if many > 2*one {
		t.Errorf("%d comparisons allocate %.0f times, one %.0f times: want about the same", maxTerms, many, one)
	}
}

// A list that reads all groups ends with its time.
func TestListOfGroupsEndsInTime(t *testing.T) {
	h := provisioned(t, 3, 1)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if w := listGroups(ctx, h, `members pr`); w.Code == http.StatusOK {
		t.Errorf("got %d %s, want no answer after the end of the call", w.Code, w.Body)
	}
	r := &request{Request: httptest.NewRequestWithContext(t.Context(), http.MethodGet, Path+"Groups", nil)}
	if err := r.inTime(ctx); !isType(err, typeTooMany) {
		t.Errorf("a scan that takes too long: got %v, want tooMany", err)
	}
	if len(h.scans["corp"]) != 0 {
		t.Error("the turn of the source was not given back")
	}
}

package issuertest

import (
	"encoding/json"
	"fmt"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
)

// A SCIMServer is a small SCIM server (RFC 7644) in memory, with the requests that an
// issuer of memberships makes. It is safe for concurrent use.
type SCIMServer struct {
	Token string // the only one that it accepts

	// Intercept, if set, may answer a request instead of the server: it returns true if it
	// did. It runs before any lock is taken.
	Intercept func(http.ResponseWriter, *http.Request) bool

	mu     sync.Mutex
	users  []map[string]any
	groups []map[string]any
	calls  []string // method and path of every PATCH
}

// NewSCIMServer returns a server with the users, and with groups without members. The ids
// are "u-" and "g-" with the name.
func NewSCIMServer(t testing.TB, users, groups []string) *SCIMServer {
	t.Helper()
	s := &SCIMServer{Token: "scim-token-of-tests"}
	for _, name := range users {
		s.users = append(s.users, map[string]any{
			"id": "u-" + name, "userName": name, "externalId": "x-" + name, "active": true,
			"emails": []any{map[string]any{"value": name + "@acme.test"}},
		})
	}
	for _, name := range groups {
		s.groups = append(s.groups, map[string]any{"id": "g-" + name, "displayName": name})
	}
	return s
}

// Members returns the ids of a group's members, sorted.
func (s *SCIMServer) Members(group string) []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	ids := valuesOf(find(s.groups, "g-"+group), "members")
	slices.Sort(ids)
	return ids
}

// Roles returns a user's roles, sorted.
func (s *SCIMServer) Roles(user string) []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	ids := valuesOf(find(s.users, "u-"+user), "roles")
	slices.Sort(ids)
	return ids
}

// Join adds a member as someone else than the broker would; Leave removes one.
func (s *SCIMServer) Join(group, user string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	setValues(find(s.groups, "g-"+group), "members", append(valuesOf(find(s.groups, "g-"+group), "members"), "u-"+user))
}

// Leave removes a member as someone else than the broker would.
func (s *SCIMServer) Leave(group, user string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	drop(find(s.groups, "g-"+group), "members", "u-"+user)
}

// Change calls f with a resource, "u-NAME" or "g-NAME". f returns false to delete it.
func (s *SCIMServer) Change(id string, f func(resource map[string]any) (keep bool)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	remove := func(r map[string]any) bool { return r["id"] == id && !f(r) }
	s.users, s.groups = slices.DeleteFunc(s.users, remove), slices.DeleteFunc(s.groups, remove)
}

// Patches returns the PATCH requests so far, as "PATCH /Groups/g-x".
func (s *SCIMServer) Patches() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.calls)
}

func find(list []map[string]any, id string) map[string]any {
	for _, r := range list {
		if r["id"] == id {
			return r
		}
	}
	return nil
}

func valuesOf(r map[string]any, attribute string) (values []string) {
	list, _ := r[attribute].([]any)
	for _, v := range list {
		values = append(values, v.(map[string]any)["value"].(string))
	}
	return values
}

func setValues(r map[string]any, attribute string, values []string) {
	list := []any{}
	for _, v := range values {
		list = append(list, map[string]any{"value": v})
	}
	r[attribute] = list
}

func drop(r map[string]any, attribute, value string) {
	setValues(r, attribute, slices.DeleteFunc(valuesOf(r, attribute), func(v string) bool { return v == value }))
}

// ServeHTTP implements http.Handler.
func (s *SCIMServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if s.Intercept != nil && s.Intercept(w, r) {
		return
	}
	if r.Header.Get("Authorization") != "Bearer "+s.Token {
		SCIMError(w, http.StatusUnauthorized, "")
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	kind, id, single := strings.Cut(strings.TrimPrefix(r.URL.Path, "/"), "/")
	list := map[string][]map[string]any{"Users": s.users, "Groups": s.groups}[kind]
	switch {
	case r.Method == http.MethodGet && !single:
		s.search(w, list, r.URL.Query().Get("filter"))
	case find(list, id) == nil:
		SCIMError(w, http.StatusNotFound, "")
	case r.Method == http.MethodPatch:
		s.calls = append(s.calls, r.Method+" "+r.URL.Path)
		s.patch(w, r, find(list, id))
	default:
		s.answer(w, s.shown(find(list, id)))
	}
}

// shown returns a resource with the read-only attribute groups of users.
func (s *SCIMServer) shown(r map[string]any) map[string]any {
	out := map[string]any{}
	for name, value := range r {
		out[name] = value
	}
	if _, isUser := r["userName"]; isUser {
		var groups []string
		for _, g := range s.groups {
			if slices.Contains(valuesOf(g, "members"), r["id"].(string)) {
				groups = append(groups, g["id"].(string))
			}
		}
		setValues(out, "groups", groups)
	}
	return out
}

// SCIMError answers with an error of SCIM (RFC 7644, section 3.12).
func SCIMError(w http.ResponseWriter, status int, kind string) {
	w.Header().Set("Content-Type", "application/scim+json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(map[string]any{"schemas": []string{"urn:ietf:params:scim:api:messages:2.0:Error"}, "status": fmt.Sprint(status), "scimType": kind})
}

func (s *SCIMServer) answer(w http.ResponseWriter, body any) {
	w.Header().Set("Content-Type", "application/scim+json")
	_ = json.NewEncoder(w).Encode(body)
}

var condition = regexp.MustCompile(`^(\w+) eq "((?:[^"\\]|\\.)*)"$`)

func (s *SCIMServer) search(w http.ResponseWriter, list []map[string]any, filter string) {
	found := []any{}
	for _, r := range list {
		matches := true
		for _, part := range strings.Split(filter, " and ") {
			m := condition.FindStringSubmatch(part)
			if m == nil {
				SCIMError(w, http.StatusBadRequest, "invalidFilter")
				return
			}
			var value string
			_ = json.Unmarshal([]byte(`"`+m[2]+`"`), &value)
			text, single := r[m[1]].(string)
			matches = matches && (single && strings.EqualFold(text, value) || !single && slices.Contains(valuesOf(r, m[1]), value))
		}
		if matches {
			found = append(found, s.shown(r))
		}
	}
	s.answer(w, map[string]any{"schemas": []string{"urn:ietf:params:scim:api:messages:2.0:ListResponse"}, "totalResults": len(found), "Resources": found})
}

var byValue = regexp.MustCompile(`^(members|roles)\[value eq ("(?:[^"\\]|\\.)*")\]$`)

func (s *SCIMServer) patch(w http.ResponseWriter, r *http.Request, resource map[string]any) {
	var body struct {
		Operations []struct {
			Op, Path string
			Value    []struct{ Value string }
		}
	}
	if err := json.NewDecoder(r.Body).Decode(&body); err != nil || len(body.Operations) != 1 {
		SCIMError(w, http.StatusBadRequest, "invalidSyntax")
		return
	}
	op := body.Operations[0]
	switch m := byValue.FindStringSubmatch(op.Path); {
	case op.Op == "remove" && m != nil:
		var value string
		_ = json.Unmarshal([]byte(m[2]), &value)
		drop(resource, m[1], value)
	case op.Op == "remove": // RFC 7644, section 3.5.2.2: the value has no meaning
		delete(resource, op.Path)
	case op.Op == "add":
		for _, v := range op.Value {
			if !slices.Contains(valuesOf(resource, op.Path), v.Value) {
				setValues(resource, op.Path, append(valuesOf(resource, op.Path), v.Value))
			}
		}
	default:
		SCIMError(w, http.StatusBadRequest, "invalidPath")
		return
	}
	w.WriteHeader(http.StatusNoContent)
}

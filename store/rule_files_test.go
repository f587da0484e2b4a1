package store

import (
	"fmt"
	"testing"

	"accessbroker.internal/audit"
)

func TestReplicasShareTheRulesOfTheLog(t *testing.T) {
	u := emptyPostgres(t, "")
	var replicas []*Store
	for range 2 {
		s, err := Open(t.Context(), Config{URL: u.format(u.password)})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = s.Close() })
		replicas = append(replicas, s)
	}
	first, second := map[string]audit.Digest{"a.cedar": {1}, "groups.yaml": {2}}, map[string]audit.Digest{"a.cedar": {3}, "copy.cedar": {3}, "groups.yaml": {2}}
	for _, s := range replicas { // the second one has nothing to do
		if err := s.KeepRules(map[string][]byte{"a.cedar": []byte("permit"), "groups.yaml": []byte("support: {}")}, first); err != nil {
			t.Fatal(err)
		}
	}
	if err := replicas[1].KeepRules(map[string][]byte{"a.cedar": []byte("forbid"), "copy.cedar": []byte("forbid"), "groups.yaml": []byte("other")}, second); err != nil {
		t.Fatal(err)
	}
	for want, digests := range map[string]map[string]audit.Digest{
		"map[a.cedar:permit groups.yaml:support: {}]":                   first,
		"map[a.cedar:forbid copy.cedar:forbid groups.yaml:support: {}]": second,
		"map[]": {"lost.cedar": {9}},
	} {
		files, err := replicas[0].keptRules(t.Context(), digests)
		texts := map[string]string{}
		for name, content := range files {
			texts[name] = string(content)
		}
		if got := fmt.Sprint(texts); err != nil || got != want {
			t.Errorf("got %s, %v, want %s", got, err, want)
		}
	}
}

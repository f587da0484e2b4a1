package verify

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"iter"
	"math/rand/v2"
	"reflect"
	"runtime"
	"strings"
	"testing"

	"accessbroker.internal/audit"
)

// verifySequentially verifies an export on one core, with the complete parser of lines
// and openings only.
func verifySequentially(t *testing.T, export []byte) (*Report, error) {
	t.Helper()
	src, err := OpenExport(bytes.NewReader(export))
	if err != nil {
		return nil, err
	}
	h, _ := src.Header(t.Context())
	v := &verification{header: h, leases: newLeaseState(maxRemembered), memberships: newMembershipState(maxRemembered), keys: newKeyState(nil), requests: newRequestState(maxRemembered), campaigns: newCampaignState()}
	v.delegations = newDelegationState(v.leases, maxRemembered)
	v.report = Report{Origin: h.Origin, Key: h.Key, Kinds: map[audit.Kind]int64{}}
	v.openCheckpoints(h.Checkpoints)
	v.compareCheckpoints(0)
	for item, err := range src.Items(t.Context()) {
		if err != nil {
			return &v.report, fmt.Errorf("verifying the log: %w", err)
		}
		p := &prepared{Item: item}
		p.prepare()
		if p.leaf == nil {
			openings, err := audit.DecodeOpenings(item.Openings)
			if err == nil {
				err = p.record.CheckOpenings(openings)
			}
			p.opened, p.texts, p.terms = len(openings), err, nil
		}
		v.item(p)
	}
	v.finish()
	if len(v.report.Problems) > 0 {
		return &v.report, &v.report.Problems[0]
	}
	v.report.Verified = true
	return &v.report, nil
}

// mutations change an export at random, as an attacker or a damaged disk might.
var mutations = map[string]func(r *rand.Rand, lines []string) []string{
	"nothing":  func(_ *rand.Rand, lines []string) []string { return lines },
	"truncate": func(r *rand.Rand, lines []string) []string { return lines[:1+r.IntN(len(lines)-1)] },
	"cut a line": func(r *rand.Rand, lines []string) []string {
		i := 1 + r.IntN(len(lines)-1)
		lines[i] = lines[i][:r.IntN(len(lines[i]))]
		return lines
	},
	"swap": func(r *rand.Rand, lines []string) []string {
		i, j := 1+r.IntN(len(lines)-1), 1+r.IntN(len(lines)-1)
		lines[i], lines[j] = lines[j], lines[i]
		return lines
	},
	"repeat": func(r *rand.Rand, lines []string) []string {
		i := 1 + r.IntN(len(lines)-1)
		return append(lines[:i:i], lines[i-1:]...)
	},
	"change a byte": func(r *rand.Rand, lines []string) []string {
		i := 1 + r.IntN(len(lines)-1)
		b := []byte(lines[i])
		b[r.IntN(len(b))] ^= 1 << r.IntN(7)
		lines[i] = strings.ReplaceAll(string(b), "\n", " ")
		return lines
	},
	"insert": func(r *rand.Rand, lines []string) []string {
		i := 1 + r.IntN(len(lines)-1)
		at := r.IntN(len(lines[i]) + 1)
		what := []string{" ", "}", "{", `"`, "0", ",", `,"openings":{}`, `,"leaf":{}`, `\u0041`, "\x00", "\xff", `,"other":1`, "é"}
		lines[i] = lines[i][:at] + what[r.IntN(len(what))] + lines[i][at:]
		return lines
	},
	"append": func(r *rand.Rand, lines []string) []string {
		i := 1 + r.IntN(len(lines)-1)
		lines[i] += []string{" ", "}", "x", `,"a":1}`}[r.IntN(4)]
		return lines
	},
	"capitals": func(r *rand.Rand, lines []string) []string {
		i := 1 + r.IntN(len(lines)-1)
		lines[i] = strings.Replace(lines[i], "a", "A", 1+r.IntN(8))
		return lines
	},
}

// Verification on all cores must find the same problems in the same order, and end
// with the same error, as verification on one.
func TestVerifyOnAllCoresEqualsSequential(t *testing.T) {
	t.Parallel()
	m := &testLog{}
	m.record(t, audit.Record{Kind: audit.LogOpened, Log: &audit.LogFacts{Origin: origin}})
	for n := range 2*batchRecords + 7 {
		m.record(t, leaseRecord(audit.LeaseIssued, fmt.Sprint("lse_", n)))
	}
	m.sign(t)
	var whole bytes.Buffer
	if err := Export(t.Context(), &whole, m); err != nil {
		t.Fatal(err)
	}
	seen := map[bool]int{}
	for name, mutate := range mutations {
		for seed := range uint64(10) {
			r := rand.New(rand.NewPCG(seed, 37))
			lines := strings.Split(strings.TrimSuffix(whole.String(), "\n"), "\n")
			text := []byte(strings.Join(mutate(r, lines), "\n"))
			want, wantErr := verifySequentially(t, text)
			src, err := OpenExport(bytes.NewReader(text))
			if err != nil {
				t.Fatalf("%s, seed %d: %v", name, seed, err)
			}
			got, gotErr := Verify(t.Context(), src, Options{})
			if fmt.Sprint(gotErr) != fmt.Sprint(wantErr) || !reflect.DeepEqual(got, want) {
				t.Errorf("%s, seed %d: got %v\n%+v\nwant %v\n%+v", name, seed, gotErr, got, wantErr, want)
			}
			seen[wantErr == nil]++
		}
	}
	if seen[true] < 10 || seen[false] < 50 {
		t.Errorf("got %d valid and %d invalid exports, want at least 10 and 50", seen[true], seen[false])
	}
}

// endlessSource yields large items until its consumer ends or an item fails, and
// counts them.
type endlessSource struct {
	testLog
	items  int
	failAt int
}

func (s *endlessSource) Items(context.Context) iter.Seq2[audit.Item, error] {
	return func(yield func(audit.Item, error) bool) {
		for ; ; s.items++ {
			var err error
			if s.items == s.failAt {
				err = errors.New("the disk failed")
			}
			if !yield(audit.Item{Leaf: make([]byte, audit.MaxLeaf)}, err) || err != nil {
				return
			}
		}
	}
}

// A source is read no further ahead than a few batches, so its size does not matter.
func TestPrepareIsBounded(t *testing.T) {
	t.Parallel()
	src := &endlessSource{failAt: -1}
	consumed := 0
	for range prepareAll(t.Context(), src) {
		if consumed++; consumed == 100 {
			break
		}
	}
	// Nothing writes src.items any more. A batch holds 1 MiB, which is 16 of the leaves.
	if ahead := (src.items - consumed) / 16; ahead > 3*runtime.GOMAXPROCS(0)+4 {
		t.Errorf("got %d batches ahead of the consumer", ahead)
	}
	src = &endlessSource{failAt: 40}
	r, err := Verify(t.Context(), src, Options{})
	if err == nil || err.Error() != "verifying the log: the disk failed" || r.More+len(r.Problems) < 40 {
		t.Errorf("got %v and %d problems, want the error after the problems of 40 records", err, len(r.Problems))
	}
}

package inventory

import (
	"context"
	"slices"
	"strings"

	"accessbroker.internal/broker"
)

// A Filter selects identities; zero fields select all.
type Filter struct {
	Kind    broker.Kind
	Team    string
	Problem string // a ProblemCode, or AnyProblem
	Words   string // all of them in its id, team, owners, supplier or sponsor
	After   string // page: only ids after this one
	Limit   int
}

// AnyProblem selects identities that have a problem.
const AnyProblem = "any"

// A Page is a page of the inventory, in the order of the ids.
type Page struct {
	Identities []*Identity
	Next       string // After of the next page; empty: this is the last one
	Known      int64  // identities that records name
	Behind     int64  // records that are not counted yet
}

const (
	pageDefault = 50
	pageMax     = 200
	batchSize   = 200    // identities that are read at a time
	maxSearched = 20_000 // identities that one call reads to fill a page
	maxJudged   = 2_000  // identities that one call looks at closely to find a problem
)

// List returns a page of the inventory to those who may see it. A page may be short, or
// empty, before the last one: a call reads a bounded number of identities.
func (v *Inventory) List(ctx context.Context, caller broker.Caller, f Filter) (*Page, error) {
	if err := v.checkMayList(ctx, caller); err != nil {
		return nil, err
	}
	if f.Limit <= 0 {
		f.Limit = pageDefault
	}
	f.Limit = min(f.Limit, pageMax)
	p := &Page{Next: f.After}
	var err error
	if p.Known, p.Behind, err = v.cfg.Store.Surveyed(ctx); err != nil {
		return nil, err
	}
	rules := v.cfg.Broker.Rules()
	words := broker.SearchWords(f.Words)
	for searched, judged := 0, 0; searched < maxSearched && judged < maxJudged; {
		batch, last, err := v.batch(ctx, rules, p.Next)
		if err != nil {
			return nil, err
		}
		searched += len(batch)
		batch = slices.DeleteFunc(batch, func(i *Identity) bool { return !f.mayWant(i, words) })
		full, n, err := v.fill(ctx, rules, caller, p, batch, f)
		if err != nil || full {
			return p, err
		}
		judged += n
		if p.Next = last; last == "" {
			return p, nil
		}
	}
	return p, nil
}

// fill adds the identities of a batch that the filter selects until the page is full. It
// looks closely only at as many as it needs.
func (v *Inventory) fill(ctx context.Context, rules *broker.Rules, caller broker.Caller, p *Page, batch []*Identity, f Filter) (full bool, judged int, err error) {
	for len(batch) > 0 {
		some := batch[:min(len(batch), max(f.Limit-len(p.Identities)+1, pageDefault))]
		batch = batch[len(some):]
		if err := v.complete(ctx, rules, some, caller.At); err != nil {
			return false, 0, err
		}
		judged += len(some)
		for _, i := range some {
			if !f.wants(i) {
				continue
			}
			if len(p.Identities) == f.Limit { // there is one more
				p.Next = p.Identities[f.Limit-1].ID
				return true, judged, nil
			}
			p.Identities = append(p.Identities, i)
		}
	}
	return false, judged, nil
}

// mayWant reports whether the filter selects an identity, whatever its problems.
func (f *Filter) mayWant(i *Identity, words []string) bool {
	return (f.Kind == "" || i.Kind == f.Kind) && (f.Team == "" || i.Team == f.Team) &&
		(len(words) == 0 || i.hasWords(words))
}

// wants reports whether the filter selects an identity whose problems are known.
func (f *Filter) wants(i *Identity) bool {
	return f.Problem == "" || f.Problem == AnyProblem && len(i.Problems) > 0 || f.Problem != AnyProblem && i.Has(ProblemCode(f.Problem))
}

func (i *Identity) hasWords(words []string) bool {
	return broker.ContainsWords(words, slices.Concat([]string{i.ID, i.Team, i.Sponsor, string(i.Kind)}, i.Accountable, i.Suppliers, i.Named)...)
}

// batch returns the next identities after an id, from the log, the rules and the facts, in
// the order of their ids. last is empty after the last batch.
func (v *Inventory) batch(ctx context.Context, rules *broker.Rules, after string) (list []*Identity, last string, err error) {
	known := v.declared.of(rules)
	seen, err := v.cfg.Store.Identities(ctx, Query{After: after, Limit: batchSize})
	if err != nil {
		return nil, "", err
	}
	found := map[string]*Seen{}
	stated := map[string]*broker.Standing{}
	var sources [4][]string
	for _, s := range seen {
		found[s.ID] = s
		sources[0] = append(sources[0], s.ID)
	}
	sources[1] = known.after(after, batchSize)
	for n, kind := range []broker.FactKind{broker.FactPerson, broker.FactAgent} {
		standings, err := v.cfg.Broker.Facts.List(ctx, kind, after, batchSize)
		if err != nil {
			return nil, "", err
		}
		for _, s := range standings {
			sources[2+n] = append(sources[2+n], s.Name)
			stated[s.Name] = s
		}
	}
	ids, last := merged(sources[:])
	for _, id := range ids {
		i := v.start(rules, known, id)
		if s := stated[id]; s != nil {
			i.describe(s)
		}
		if i.Seen = found[id]; i.Seen == nil && known.paths[id] {
			if i.Mark, err = v.unseenBelow(ctx, id); err != nil {
				return nil, "", err
			}
			if !i.Mark {
				continue // its identities are listed
			}
		}
		list = append(list, i)
	}
	return list, last, nil
}

// merged returns the ids of several sorted lists in order, each once: as many as are known
// to be complete. A list that has batchSize ids may have more. last is empty if none does.
func merged(sources [][]string) (ids []string, last string) {
	for _, list := range sources {
		if len(list) == batchSize && (last == "" || list[batchSize-1] < last) {
			last = list[batchSize-1]
		}
	}
	ids = slices.Concat(sources...)
	slices.Sort(ids)
	ids = slices.Compact(ids)
	if last != "" {
		i, _ := slices.BinarySearch(ids, last)
		ids = ids[:i+1]
	}
	return ids, last
}

// unseenBelow reports whether no record names an identity below a path.
func (v *Inventory) unseenBelow(ctx context.Context, path string) (bool, error) {
	below, err := v.cfg.Store.Identities(ctx, Query{After: path + "/", Until: strings.TrimSuffix(path, "/") + "0", Limit: 1}) // 0 follows /
	return len(below) == 0, err
}

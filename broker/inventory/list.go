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

// A Page is a page of the inventory: workloads and agents, and then people, each in the
// order of their ids.
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
	maxSearched = 10_000 // identities that one call reads to fill a page
	maxJudged   = 1_000  // identities that one call looks at closely to find a problem
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
	p := &Page{}
	var err error
	if p.Known, p.Behind, err = v.cfg.Store.Surveyed(ctx); err != nil {
		return nil, err
	}
	search := &search{Page: p, filter: f, words: broker.SearchWords(f.Words), rules: v.cfg.Broker.Rules(), caller: caller}
	for _, part := range f.stretches() {
		if done, err := v.read(ctx, search, part); err != nil || done {
			return p, err
		}
	}
	p.Next = ""
	return p, nil
}

// A search fills a page.
type search struct {
	*Page
	filter           Filter
	words            []string
	rules            *broker.Rules
	caller           broker.Caller
	searched, judged int // identities
}

// read adds the identities of a stretch that the filter selects. It is done if the page is
// full, or if the search has reached its bounds.
func (v *Inventory) read(ctx context.Context, s *search, part stretch) (done bool, err error) {
	for more := true; more; more = part.after != "" {
		if s.searched >= maxSearched || s.judged >= maxJudged {
			return true, nil
		}
		batch, last, err := v.batch(ctx, s.rules, part)
		if err != nil {
			return false, err
		}
		s.searched += len(batch)
		switch part.after = last; {
		case last != "":
			s.Next = last
		case len(batch) > 0:
			s.Next = batch[len(batch)-1].ID
		}
		batch = slices.DeleteFunc(batch, func(i *Identity) bool { return !s.filter.mayWant(i, s.words) })
		if full, err := v.fill(ctx, s, batch); err != nil || full {
			return full, err
		}
	}
	return false, nil
}

// A stretch is a range of ids: those after one and before another; empty: no bound.
type stretch struct{ after, until string }

// pastWorkloads follows every SPIFFE ID.
const pastWorkloads = "spiffe:0"

// stretches returns the ids that a filter may select, in the order of the list: workloads
// and agents come first, because a directory may have any number of people.
func (f *Filter) stretches() (list []stretch) {
	workloads, before, after := stretch{spiffeScheme, pastWorkloads}, stretch{"", spiffeScheme}, stretch{pastWorkloads, ""}
	switch {
	case f.After == "":
		list = []stretch{workloads, before, after}
	case strings.HasPrefix(f.After, spiffeScheme):
		list = []stretch{{f.After, pastWorkloads}, before, after}
	case f.After < spiffeScheme:
		list = []stretch{{f.After, spiffeScheme}, after}
	default:
		list = []stretch{{f.After, ""}}
	}
	return slices.DeleteFunc(list, func(s stretch) bool {
		return f.Kind != "" && (f.Kind == broker.KindPerson) == (s.until == pastWorkloads)
	})
}

// fill adds the identities of a batch that the filter selects until the page is full. It
// looks closely only at as many as it needs.
func (v *Inventory) fill(ctx context.Context, s *search, batch []*Identity) (full bool, err error) {
	limit := s.filter.Limit
	for len(batch) > 0 {
		some := batch[:min(len(batch), max(limit-len(s.Identities)+1, pageDefault))]
		batch = batch[len(some):]
		if err := v.complete(ctx, s.rules, some, s.caller.At); err != nil {
			return false, err
		}
		s.judged += len(some)
		for _, i := range some {
			if !s.filter.wants(i) {
				continue
			}
			if len(s.Identities) == limit { // there is one more
				s.Next = s.Identities[limit-1].ID
				return true, nil
			}
			s.Identities = append(s.Identities, i)
		}
	}
	return false, nil
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
func (v *Inventory) batch(ctx context.Context, rules *broker.Rules, part stretch) (list []*Identity, last string, err error) {
	known := v.declared.of(rules)
	seen, err := v.cfg.Store.Identities(ctx, Query{After: part.after, Until: part.until, Limit: batchSize})
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
	sources[1] = known.after(part.after, batchSize)
	for n, kind := range []broker.FactKind{broker.FactPerson, broker.FactAgent} {
		if (kind == broker.FactAgent) != (part.until == pastWorkloads) {
			continue
		}
		standings, err := v.cfg.Broker.Facts.List(ctx, kind, part.after, batchSize)
		if err != nil {
			return nil, "", err
		}
		for _, s := range standings {
			sources[2+n] = append(sources[2+n], s.Name)
			stated[s.Name] = s
		}
	}
	ids, last := merged(sources[:], part.until)
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
// to be complete, and none from until on. A list that has batchSize ids may have more. last
// is empty if none does.
func merged(sources [][]string, until string) (ids []string, last string) {
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
	if until != "" {
		i, _ := slices.BinarySearch(ids, until)
		if i < len(ids) {
			ids, last = ids[:i], ""
		}
	}
	return ids, last
}

// unseenBelow reports whether no record names an identity below a path.
func (v *Inventory) unseenBelow(ctx context.Context, path string) (bool, error) {
	below, err := v.cfg.Store.Identities(ctx, Query{After: path + "/", Until: strings.TrimSuffix(path, "/") + "0", Limit: 1}) // 0 follows /
	return len(below) == 0, err
}

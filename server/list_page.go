package server

import (
	"strconv"

	"accessbroker.internal/broker"
)

// A listPage is the part of a short list that a page shows.
type listPage struct {
	From, To, Total int    // the first and the last row, counted from 1
	Previous, Next  string // the positions of the neighbouring pages; empty: no such page
}

// listRows is the number of rows of such a page.
const listRows = 50

// cutPage returns the page of a list that begins at a position. A malformed position, and
// one behind the end, is the first page.
func cutPage[T any](list []T, position string) ([]T, listPage) {
	from, err := strconv.Atoi(position)
	if err != nil || from < 0 || from >= len(list) {
		from = 0
	}
	to := min(from+listRows, len(list))
	p := listPage{From: from + 1, To: to, Total: len(list)}
	if from > 0 {
		p.Previous = strconv.Itoa(max(from-listRows, 0))
	}
	if to < len(list) {
		p.Next = strconv.Itoa(to)
	}
	return list[from:to], p
}

// searchOffers returns the offers whose names or texts contain all the words.
func searchOffers(offers []broker.Offer, text string) (found []broker.Offer) {
	words := broker.SearchWords(text)
	for _, o := range offers {
		if e := o.Entitlement; broker.ContainsWords(words, append([]string{e.Name, e.Description, e.System, e.Owner}, e.Scopes...)...) {
			found = append(found, o)
		}
	}
	return found
}

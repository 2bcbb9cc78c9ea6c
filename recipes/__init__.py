from recipes.interrupted import tell_in_one_line

tell_in_one_line()

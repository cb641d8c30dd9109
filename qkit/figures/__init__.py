"""Pictures: every function draws into axes that it is given, from plain numbers or from any object that holds them."""
